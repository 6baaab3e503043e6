"""Returns, whitened advantages and losses of reinforcement learning on sampled token sequences.

Everything is (B, T): B sequences, T tokens, padded to the right; masks are True on real tokens. What stands at padding
never matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import ShapeError

Reduction = Literal["caption", "token"]
Spread = Literal["unbiased", "biased"]
Objective = Literal["prob", "logprob"]


def token_returns(final: Tensor, local: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return of every token: what its sequence earns at its end, and what is earned from this token on.

    Args:
        final: (B,) reward paid at the last real token.
        local: (B, T) reward paid at each token.
        mask: (B, T) bool.
        gamma: discount per token, in (0, 1].

    Returns:
        (B, T) in the dtype of `final`; 0 at padding. R_k = gamma^(n-k) final + sum over s >= k of gamma^(s-k) local_s.

    Raises:
        ShapeError: the shapes do not fit together.
        ValueError: gamma out of range.
    Source: VLRM (arXiv 2404.01911), section 3.4; gamma = 1 there.
    """
    if local.shape != mask.shape or final.shape != local.shape[:1]:
        raise ShapeError(
            f"final {tuple(final.shape)}, local {tuple(local.shape)} and mask {tuple(mask.shape)} do not fit: "
            f"wanted (B,), (B, T) and (B, T)"
        )
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}, wanted more than 0 and at most 1")
    lengths = mask.sum(dim=1)
    last = F.one_hot((lengths - 1).clamp_min(0), mask.shape[1]).bool() & mask
    earned = local.to(final.dtype).masked_fill(~mask, 0) + final[:, None] * last
    running = torch.zeros_like(final)
    columns = []
    for column in earned.unbind(dim=1)[::-1]:
        running = column + gamma * running
        columns.append(running)
    return torch.stack(columns[::-1], dim=1).masked_fill(~mask, 0)


def whiten(
    values: Tensor, mask: Tensor, *, spread: Spread = "unbiased", total: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Shift and scale to mean 0 and deviation 1 over all real tokens, of all processes if there are several.

    Args:
        values: (B, T).
        mask: (B, T) bool.
        spread: deviation with N - 1 (`unbiased`) or N.
        total: sums a tensor over the processes; by default there is one.

    Returns:
        (B, T), 0 at padding. All 0 when the values do not differ by more than their precision.
    Source: VLRM, eq. 3.
    """
    kept = values.double().masked_fill(~mask, 0)
    sums = total(torch.stack([mask.sum().double(), kept.sum()]))
    count = sums[0].clamp_min(1)
    centred = (kept - sums[1] / count).masked_fill(~mask, 0)
    squares = total(torch.stack([centred.square().sum(), kept.square().sum()]))
    deviation = (squares[0] / (count - int(spread == "unbiased")).clamp_min(1)).sqrt()
    noise = 8 * torch.finfo(values.dtype).eps * (squares[1] / count).sqrt()
    scaled = torch.where(deviation > noise, centred / deviation, torch.zeros_like(centred))
    return scaled.to(values.dtype)


def token_weights(
    mask: Tensor,
    *,
    num_captions: int,
    num_tokens: int,
    reduction: Reduction = "caption",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight of every token in a loss over a whole batch, so that the parts of a batch add up to the whole.

    Args:
        mask: (B, T) bool of a part of the batch.
        num_captions: sequences with a real token in the whole batch, over all processes.
        num_tokens: real tokens in the whole batch.
        reduction: `caption`: mean over sequences of the mean over tokens; `token`: mean over tokens.
        dtype: of the result.

    Returns:
        (B, T), 0 at padding.
    """
    if reduction == "token":
        return mask.to(dtype) / max(num_tokens, 1)
    return mask.to(dtype) / (mask.sum(dim=1, keepdim=True).clamp_min(1) * max(num_captions, 1))


def value_loss(values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared error of the values (B, T) of a part of the batch. Source: VLRM, eq. 2."""
    errors = (values - returns).masked_fill(weights == 0, 0)
    return (weights * errors.square()).sum()


def policy_loss(log_probs: Tensor, advantages: Tensor, weights: Tensor, *, objective: Objective = "prob") -> Tensor:
    """Minus the weighted product of token probabilities and whitened advantages, of a part of the batch.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens; the gradient goes here only.
        advantages: (B, T).
        weights: (B, T) from `token_weights`.
        objective: `prob` multiplies probabilities, as the paper writes; `logprob` their logarithms, as A2C does.

    Source: VLRM, eq. 4.
    """
    log_probs = log_probs.masked_fill(weights == 0, 0)
    chances = log_probs.exp() if objective == "prob" else log_probs
    return -(weights * chances * advantages.detach().masked_fill(weights == 0, 0)).sum()


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from, in at least float32.

    Args:
        logits: (B, T, V); position k predicts token k.
        tokens: (B, T) ids.
        temperature: divides the logits.
        top_k: only so many largest logits, and that of the token itself, share the probability; None = all.

    Returns:
        (B, T) log-probabilities with gradient, and (B, T) entropies in nats without.
    """
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if top_k is not None:
        least = scaled.detach().topk(min(top_k, scaled.shape[-1]), dim=-1).values[..., -1:]
        kept = (scaled.detach() >= least).scatter(-1, tokens[..., None], True)
        scaled = scaled.masked_fill(~kept, -torch.inf)
    normaliser = scaled.logsumexp(dim=-1)
    chosen = scaled.gather(-1, tokens[..., None]).squeeze(-1) - normaliser
    with torch.no_grad():
        log_shares = scaled - normaliser[..., None]
        entropy = -(log_shares.exp() * log_shares.masked_fill(log_shares == -torch.inf, 0)).sum(dim=-1)
    return chosen, entropy


def mutual_choice(
    image_embeddings: Tensor, text_embeddings: Tensor, *, scale: float = 1.0, spread: Spread = "unbiased"
) -> Tensor:
    """How surely image and text of a pair choose each other among the whole batch, standardised over the batch.

    The product of the two softmaxes is of the order of B^-2, and with `scale` 1 it hardly varies: it is computed as a
    logarithm in float64 and brought to mean 1 before its deviation is taken, and nothing is added to the latter.

    Args:
        image_embeddings: (B, C), of any length.
        text_embeddings: (B, C).
        scale: multiplies the cosines before the softmaxes; CLIP's own is 100, the paper writes none.
        spread: `unbiased` or `biased` deviation over the batch.

    Returns:
        (B,) float32 (float64 for such inputs); all 0 when the pairs do not differ.

    Raises:
        ShapeError: the two do not have one shape.
    Source: VLRM, eq. 5.
    """
    if image_embeddings.ndim != 2 or image_embeddings.shape != text_embeddings.shape:
        raise ShapeError(
            f"image embeddings {tuple(image_embeddings.shape)} and text embeddings {tuple(text_embeddings.shape)} "
            f"do not pair: wanted (B, C) twice"
        )
    cosines = F.normalize(image_embeddings.double(), dim=-1) @ F.normalize(text_embeddings.double(), dim=-1).T
    scores = scale * cosines
    log_product = 2 * scores.diagonal() - scores.logsumexp(dim=0) - scores.logsumexp(dim=1)
    product = (log_product - log_product.mean()).exp()
    everything = torch.ones_like(product, dtype=torch.bool)[:, None]
    phi = whiten(product[:, None], everything, spread=spread).squeeze(1)
    return phi if image_embeddings.dtype == torch.float64 else phi.float()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(R - V) / var(R) over the real tokens; 0 when all returns are equal."""
    wanted, errors = returns[mask].double(), (returns - values)[mask].double()
    spread = wanted.var(correction=0) if wanted.numel() else wanted.sum()
    ratio = 1 - errors.var(correction=0) / spread if spread > 0 else torch.zeros_like(spread)
    return ratio.float()
