from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, rel_entr

from madkit.mad.affinity import AffinityHead, affinity_loss, teacher_affinity

torch.set_num_threads(1)


def inputs(S: int = 3, R: int = 4, H: int = 6, D: int = 5, K: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "query": torch.randn(S, K, H, generator=g),
        "region_states": torch.randn(S, R, H, generator=g),
        "text": torch.randn(S, K, D, generator=g),
        "regions": torch.randn(S, R, D, generator=g),
        "region_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()[:S, :R],
    }


@pytest.fixture
def head() -> AffinityHead:
    torch.manual_seed(0)
    return AffinityHead(6, dim=3)


def test_the_loss_is_the_divergence_of_the_two_softmaxes(head: AffinityHead) -> None:
    x = inputs()
    query_mask = torch.tensor([[True, True], [True, False], [False, True]])
    got = affinity_loss(head, **x, tau=7.0, query_mask=query_mask)
    for s in range(3):
        regions = torch.nonzero(x["region_mask"][s]).flatten()
        values = []
        for k in torch.nonzero(query_mask[s]).flatten():
            cosines = F.cosine_similarity(x["text"][s, k], x["regions"][s, regions], dim=-1)
            q = head.query(x["query"][s, k])
            logits = head.key(x["region_states"][s, regions]) @ q / math.sqrt(3)
            a, b = log_softmax(7.0 * cosines.numpy()), log_softmax(logits.detach().numpy())
            values.append(float((torch.tensor(a).exp() * torch.tensor(a - b)).sum()))
        assert got[s].item() == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_a_student_that_agrees_has_no_loss() -> None:
    torch.manual_seed(0)
    head = AffinityHead(4, dim=4)
    with torch.no_grad():
        head.query.weight.copy_(torch.eye(4) * math.sqrt(4) * 5.0)
        head.query.bias.zero_()
        head.key.weight.copy_(torch.eye(4))
    text, regions = F.normalize(torch.randn(2, 4), dim=-1), F.normalize(torch.randn(2, 3, 4), dim=-1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    agreed = affinity_loss(head, text, regions, text, regions, mask, tau=5.0).detach()
    opposed = affinity_loss(head, -text, regions, text, regions, mask, tau=5.0).detach()
    assert agreed.abs().max() < 1e-5
    assert opposed.min() > 1e-3


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_regions_add_nothing(head: AffinityHead, count: int) -> None:
    x = inputs()
    x["region_mask"] = torch.arange(4).expand(3, 4) < count
    loss = affinity_loss(head, **x)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_no_region_position_at_all_and_no_word(head: AffinityHead) -> None:
    x = inputs()
    none = {**x, **{name: x[name][:, :0] for name in ("region_states", "regions", "region_mask")}}
    assert affinity_loss(head, **none).tolist() == [0.0, 0.0, 0.0]
    wordless = {**x, "query": x["query"][:, :0], "text": x["text"][:, :0]}
    assert affinity_loss(head, **wordless).tolist() == [0.0, 0.0, 0.0]


def test_padding_regions_changes_nothing(head: AffinityHead) -> None:
    x = inputs()
    wider = {name: F.pad(x[name], (0, 0, 0, 2), value=3.0) for name in ("region_states", "regions")}
    wider["region_mask"] = F.pad(x["region_mask"], (0, 2))
    torch.testing.assert_close(affinity_loss(head, **{**x, **wider}), affinity_loss(head, **x), atol=1e-6, rtol=0)


def test_padded_regions_have_no_probability() -> None:
    x = inputs()
    probabilities = teacher_affinity(x["text"], x["regions"], x["region_mask"], 20.0).exp()
    assert not probabilities.masked_select(~x["region_mask"].unsqueeze(1)).any()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2))


def test_images_are_shared_by_index(head: AffinityHead) -> None:
    x = inputs()
    x["region_mask"] = torch.ones(3, 4, dtype=torch.bool)
    index = torch.tensor([1, 0, 1])
    torch.testing.assert_close(
        affinity_loss(head, **x, image_index=index), affinity_loss(head, **{**x, "regions": x["regions"][index]})
    )


def test_only_the_student_learns(head: AffinityHead) -> None:
    x = inputs()
    for name in ("query", "region_states", "text", "regions"):
        x[name].requires_grad_()
    affinity_loss(head, **x).sum().backward()
    assert x["text"].grad is None
    assert x["regions"].grad is None
    for name in ("query", "region_states"):
        grad = x[name].grad
        assert grad is not None
        assert bool(grad.isfinite().all())
        assert grad.abs().sum() > 0
    grad = x["region_states"].grad
    assert grad is not None
    assert not grad[~x["region_mask"]].any()


def test_absolute_affinity_is_one_bernoulli_divergence_per_region() -> None:
    torch.manual_seed(1)
    head = AffinityHead(6, dim=3, absolute=True)
    assert head.offset is not None
    x = inputs()
    query_mask = torch.tensor([[True, True], [True, False], [False, True]])
    got = affinity_loss(head, **x, tau=7.0, threshold=0.2, query_mask=query_mask)
    for s in range(3):
        regions = torch.nonzero(x["region_mask"][s]).flatten()
        values = []
        for k in torch.nonzero(query_mask[s]).flatten():
            cosines = F.cosine_similarity(x["text"][s, k], x["regions"][s, regions], dim=-1).numpy()
            q = head.query(x["query"][s, k])
            logits = head.key(x["region_states"][s, regions]) @ q / math.sqrt(3) + head.offset(x["query"][s, k])
            a, b = expit(7.0 * (cosines - 0.2)), expit(logits.detach().numpy())
            values.append(float((rel_entr(a, b) + rel_entr(1 - a, 1 - b)).sum()))
        assert got[s].item() == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_only_absolute_affinity_tells_a_sentence_about_nothing_from_one_about_everything() -> None:
    regions = F.normalize(torch.eye(4)[:2].unsqueeze(0) + 0.01, dim=-1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    about_all, about_none = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    states = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0))
    query = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    for absolute, told in ((False, False), (True, True)):
        torch.manual_seed(2)
        head = AffinityHead(6, absolute=absolute)
        both = [
            affinity_loss(head, query, states, text, regions, mask, threshold=0.4) for text in (about_all, about_none)
        ]
        assert bool((both[0] - both[1]).abs() > 0.1) is told
