"""How well the words of a text are found in an image, as a few numbers that a probe can weigh.

Global vectors hide what entailment and reference turn on: whether *every* word has its place in the picture. Late
interaction looks each word up among the patches (ColBERT's and FILIP's maximum similarity, arXiv 2004.12832 and
2111.07783); what is kept are statistics over the words, so that a probe on a few hundred labels has little to fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TAU = 20.0  # factor of cosines before a softmax over patches, as in affinity distillation
WIDTH = 13  # numbers that `interaction_features` gives


def interaction_features(words: Tensor, text: Tensor, patches: Tensor, image: Tensor) -> Tensor:
    """Statistics of the cosines between a text and an image, in a space that both share.

    With m_i = max_p cos(l_i, v_p) of each word: mean, least, largest and spread of m; mean and least cos(l_i, v_0);
    mean cosine over all words and patches; mean over words of the cosine under a softmax over patches. For the whole
    text: largest and mean cos(l_0, v_p), cos(l_0, v_0), the cosine under the softmax, and the spread over patches.

    Args:
        words: l_i [T, D], at least one.
        text: l_0 [D].
        patches: v_p [P, D].
        image: v_0 [D].

    Returns:
        [WIDTH] float32.
    """
    words, text, patches, image = (F.normalize(x.float(), dim=-1) for x in (words, text, patches, image))
    similar = words @ patches.T
    best = similar.amax(-1)
    attended = ((TAU * similar).softmax(-1) * similar).sum(-1)
    whole = words @ image
    sentence = patches @ text
    return torch.stack(
        [
            best.mean(), best.amin(), best.amax(), best.std(unbiased=False), whole.mean(), whole.amin(),
            similar.mean(), attended.mean(), sentence.amax(), sentence.mean(), text @ image,
            ((TAU * sentence).softmax(-1) * sentence).sum(), sentence.std(unbiased=False),
        ]
    )  # fmt: skip
