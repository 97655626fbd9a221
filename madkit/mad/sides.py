"""What of the settings a teacher can teach that reads one modality alone, or whose two sides share no space.

Free of torch, as the configuration itself: what drops out is known before anything is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from madkit.mad.config import MADConfig

_OF_IMAGES = ("region_weight", "tag_weight", "global_image_weight")
_OF_TEXTS = ("text_weight", "global_text_weight")


@dataclass(frozen=True, slots=True)
class Teachable:
    """What is left of the settings for one teacher.

    Attributes:
        config: the settings with what the teacher lacks switched off; None: nothing is left.
        dropped: terms that went, by the names they have in the criterion's output ("affinity" for all its forms).
        relevance: whether ``relevance: shared`` gave way to ``unrelated``.
    """

    config: MADConfig | None
    dropped: tuple[str, ...] = ()
    relevance: bool = False


def teachable(config: MADConfig, *, images: bool, texts: bool, shared_space: bool) -> Teachable:
    """The part of `config` that a teacher can teach.

    A teacher without images has no region, tag and global image terms, one without texts no text and global text
    terms, and one whose sides share no space (or that has one side only) no affinity; its selection then measures
    relevance inside each modality. What it can teach keeps its coefficients.

    Args:
        config: the settings.
        images: whether it reads images.
        texts: whether it reads texts.
        shared_space: whether cosines between its images and its texts mean something.
    """
    shared = shared_space and images and texts
    off = (*(() if images else _OF_IMAGES), *(() if texts else _OF_TEXTS))
    values = {**config.model_dump(), **dict.fromkeys(off, 0.0)}
    before = set(config.term_weights)
    # asked of a copy that was not validated: a token part that is left with no term is switched off below
    after = set(config.model_copy(update=dict.fromkeys(off, 0.0)).term_weights)
    if not after:
        values["weight"] = 0.0
    affinity = config.affinity_weight > 0
    relevance = False
    if not shared:
        values["affinity_weight"] = 0.0
        relevance = config.relevance == "shared" and config.tokens == "adaptive" and bool(after)
        values["relevance"] = "auto" if config.relevance == "auto" else "unrelated"
    order = [*config.term_weights]
    dropped = [name for name in order if name in before - after]
    if affinity and not shared:
        dropped.append("affinity")
    if values["weight"] == 0 and values["affinity_weight"] == 0:
        return Teachable(None, tuple(dropped), False)
    if not dropped and not relevance:
        return Teachable(config)
    return Teachable(MADConfig.model_validate(values), tuple(dropped), relevance)
