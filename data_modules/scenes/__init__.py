"""The embedded data: short procedural clips with sound, picture, captions, events, boxes and masks.

`sample_scene` gives one clip, `generate_scenes` writes a whole set in the published file formats, `parse_caption` and
`events_correct` judge captions, `count_details` those of pictures. Needs numpy, Pillow, PyAV and tqdm; no torch.
"""

from avcap_zoo.data_modules.scenes.events import (
    EVENT_NAMES,
    EVENTS,
    PICTURES,
    RELATIONS,
    SOUNDS,
    SPLITS,
    EventKind,
    Relation,
    Split,
)
from avcap_zoo.data_modules.scenes.export import FORMATS, generate_scenes
from avcap_zoo.data_modules.scenes.grammar import (
    EventMention,
    ParsedCaption,
    events_correct,
    fully_correct,
    parse_caption,
    split_words,
    vocabulary,
)
from avcap_zoo.data_modules.scenes.picture_reading import count_details, read_picture_caption
from avcap_zoo.data_modules.scenes.published_forms import VIDEO_FPS, annotate
from avcap_zoo.data_modules.scenes.scene import (
    SCENES_VERSION,
    Scene,
    SceneEvent,
    SceneObject,
    boxes,
    detailed_caption,
    frame_times,
    object_masks,
    render_frames,
    render_frames_at,
    render_waveform,
    sample_scene,
    still_captions,
    terse_captions,
)

__all__ = [
    "EVENTS",
    "EVENT_NAMES",
    "FORMATS",
    "PICTURES",
    "RELATIONS",
    "SCENES_VERSION",
    "SOUNDS",
    "SPLITS",
    "VIDEO_FPS",
    "EventKind",
    "EventMention",
    "ParsedCaption",
    "Relation",
    "Scene",
    "SceneEvent",
    "SceneObject",
    "Split",
    "annotate",
    "boxes",
    "count_details",
    "detailed_caption",
    "events_correct",
    "frame_times",
    "fully_correct",
    "generate_scenes",
    "object_masks",
    "parse_caption",
    "read_picture_caption",
    "render_frames",
    "render_frames_at",
    "render_waveform",
    "sample_scene",
    "split_words",
    "still_captions",
    "terse_captions",
    "vocabulary",
]
