"""The benchmark of VLRM's iteration compares like with like."""

from __future__ import annotations

import torch

from benchmarks.vlrm_iteration import build, iterate, iterate_plainly, measure, pictures


def test_both_ways_draw_the_same_captions_and_make_the_same_gradients() -> None:
    batch = pictures(3, 28)
    gradients = []
    found = []
    for way in (iterate, iterate_plainly):
        model = build(5, layers=1, image_size_px=28)
        with torch.random.fork_rng():
            found.append(measure(model, batch, way))
            way(model, batch)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours, plain = found
    assert (ours.tower_calls, plain.tower_calls) == (1, 4)
    assert torch.equal(ours.tokens, plain.tokens)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)
