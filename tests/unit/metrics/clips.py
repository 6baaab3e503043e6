"""Four invented clips, with scores from pycocoevalcap 1.2 and aac-metrics 0.6.0, which agreed to six decimals."""

from __future__ import annotations

CANDIDATES = [
    "a dog is barking and rain falls",
    "a man speaks then a door closes",
    "birds are chirping",
    "a car engine is revving loudly",
]
REFERENCES = [
    ["A dog barks loudly while rain falls.", "Rain is falling and a dog is barking", "A dog barking in the rain"],
    [
        "A man speaks followed by a door closing.",
        "Someone talks, then a door shuts",
        "A man is talking and a door slams",
    ],
    ["Birds chirp in the distance", "Several birds are chirping and singing", "Birds tweeting continuously"],
    ["An engine revs (very) loudly!", "A car engine accelerates", "A vehicle's engine revving"],
]
IDS = ["clip1", "clip2", "clip3", "clip4"]

NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider")

# name of the set: (candidates, references)
SETS = {
    "all": (CANDIDATES, REFERENCES),
    "last_empty": ([*CANDIDATES[:3], ""], REFERENCES),
    "first_reference": (CANDIDATES, [own[:1] for own in REFERENCES]),
}
# Scores in the order of NAMES.
GOLDEN_PTB = {
    "all": (0.913043, 0.759381, 0.613281, 0.380537, 0.633526, 0.396727, 2.331419),
    "last_empty": (0.788916, 0.687276, 0.564590, 0.370568, 0.477914, 0.321008, 1.871867),
    "first_reference": (0.438454, 0.311391, 0.175791, 2.5e-05, 0.443219, 0.295862, 1.631021),
}
# pycocoevalcap fed with hand-split tokens: "an engine revs very loudly", "a vehicle's engine revving". No METEOR.
GOLDEN_PYTHON = {
    "all": (0.913043, 0.759381, 0.613281, 0.380537, 0.633526, None, 2.354740),
    "last_empty": (0.788916, 0.687276, 0.564590, 0.370568, 0.477914, None, 1.871867),
    "first_reference": (0.478287, 0.339680, 0.191762, 2.8e-05, 0.459772, None, 1.661919),
}
# The first clip alone; CIDEr has no value there.
GOLDEN_SINGLE = {
    "bleu_1": 1.0,
    "bleu_2": 0.816497,
    "bleu_3": 0.643660,
    "bleu_4": 0.508133,
    "rouge_l": 0.624041,
    "meteor": 0.397234,
}
