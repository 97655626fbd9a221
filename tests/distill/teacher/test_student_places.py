"""What a loop says about its own tokens and boxes is refused where it cannot be right, with the place that is wrong."""

from __future__ import annotations

import pytest
import torch

from madkit import token_spans
from madkit.core.errors import DataError
from madkit.distill.teacher.student_places import check_boxes, places_of_tokens, rows_of_images


def fast_tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "is", "it", "rain", "##ing", "no", "?"]
    core = Tokenizer(models.WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


def test_spans_of_a_fast_tokenizer_count_in_each_text():
    questions, answers = ["Is it raining?", "it"], ["No", "raining"]
    encoding = fast_tokenizer()(questions, answers, padding=True)
    spans, segments = token_spans(encoding)
    assert spans.shape == (2, 9, 2)
    cut = [
        [
            (questions, answers)[segment][row][start:end]
            for (start, end), segment in zip(spans[row].tolist(), segments[row].tolist(), strict=True)
            if segment >= 0
        ]
        for row in (0, 1)
    ]
    assert cut == [["Is", "it", "rain", "ing", "?", "No"], ["it", "rain", "ing"]]
    assert segments[0].tolist() == [-1, 0, 0, 0, 0, 0, -1, 1, -1]
    assert segments[1].tolist() == [-1, 0, -1, 1, 1, -1, -1, -1, -1]


def test_an_encoding_without_offsets_is_refused():
    with pytest.raises(DataError, match="no character offsets"):
        token_spans({"input_ids": [[1, 2]]})
    with pytest.raises(DataError, match="differ in length"):
        token_spans(fast_tokenizer()(["is it", "no"]))


def test_tokens_that_are_no_text_have_no_span():
    spans = torch.tensor([[[7, 7], [0, 2], [3, 5]]])
    got, segments = places_of_tokens([("is it", "no")], spans, torch.tensor([[0, 0, -1]]))
    assert segments.tolist() == [[-1, 0, -1]]
    assert got.tolist() == [[[0, 0], [0, 2], [0, 0]]]
    alone, segments = places_of_tokens([("is it",)], spans, None)
    assert segments.tolist() == [[-1, 0, 0]]
    assert alone[0, 2].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("texts", "spans", "segments", "message"),
    [
        (
            [("is it",)],
            [[[0, 2], [4, 6]]],
            None,
            "Sequence 0, token 1 is at characters 4 to 6 of a text of 5 characters",
        ),
        ([("is it",)], [[[-1, 2]]], None, "characters -1 to 2"),
        ([("is", "it")], [[[0, 2]]], None, "need segments"),
        ([("is", "it")], [[[0, 2]]], [[2]], "belongs to text 2, and the sequence has 2"),
        ([("is", "it"), ("no",)], [[[0, 2]], [[0, 2]]], [[1], [1]], "Sequence 1, token 0 belongs to text 1"),
        ([("is",)], [[[0, 2]]], [[0, 0]], r"need segments of \[1, T\]|must be \(1, 1\)"),
        ([("is",)], [[0, 2]], None, r"need spans of \[1, T, 2\]"),
        ([("is",), ("it",)], [[[0, 2]]], None, r"2 sequences need spans"),
    ],
)
def test_spans_outside_of_their_text_are_refused(texts, spans, segments, message):
    with pytest.raises(DataError, match=message):
        places_of_tokens(texts, torch.tensor(spans), None if segments is None else torch.tensor(segments))


@pytest.mark.parametrize("box", [(12.0, 30.0, 200.0, 410.0), (0.1, 0.1, 0.5, 1.01), (0.0, float("nan"), 1.0, 1.0)])
def test_boxes_in_pixels_are_refused(box):
    boxes = torch.tensor([[(0.0, 0.0, 1.0, 1.0005), box]])
    with pytest.raises(DataError, match=r"The box 1 of image 'owl' is .* shares of the image's sides"):
        check_boxes(boxes, torch.tensor([[True, True]]), ["owl"])
    check_boxes(boxes, torch.tensor([[True, False]]), ["owl"])  # padding may hold anything


@pytest.mark.parametrize("box", [(0.5, 0.1, 0.3, 0.6), (0.1, 0.6, 0.3, 0.2), (0.6, 0.7, 0.2, 0.1)])
def test_boxes_of_a_corner_with_width_and_height_are_refused(box):
    boxes = torch.tensor([[(0.2, 0.2, 0.2, 0.7), (0.5, 0.5, 0.4995, 0.5), box]])  # a line, and one that was rounded
    with pytest.raises(DataError, match=r"The box 2 of image 'owl' is .* its second corner") as caught:
        check_boxes(boxes, torch.ones(1, 3, dtype=torch.bool), ["owl"])
    assert "not (x, y, width, height)" in str(caught.value.hint)
    check_boxes(boxes, torch.tensor([[True, True, False]]), ["owl"])  # padding may hold anything
    check_boxes(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), ["owl", "cat"])


def test_sequences_share_images_in_order_or_as_told():
    assert rows_of_images(None, 6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert rows_of_images(torch.tensor([1, 0, 1]), 3, 2).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="no whole number"):
        rows_of_images(None, 5, 3)
    for wrong in ([0, 2], [0, -1], [0]):
        with pytest.raises(DataError, match="image_index"):
            rows_of_images(torch.tensor(wrong), 2, 2)
