"""The classic bottom-up-attention TSVs (`trainval_resnet101_faster_rcnn_genome_36.tsv` and its kind).

Columns: image_id, image_w, image_h, num_boxes, boxes (float32 [n, 4]), features (float32 [n, 2048]); 36 boxes an image,
or 10 to 100. The width comes before the height, unlike in LXMERT's files. No confidences.
"""

from __future__ import annotations

from madkit.regions.object_tsv import ObjectTsvReader


class ButdTsvReader(ObjectTsvReader):
    """Reads the classic layout."""

    _expects = "six tab-separated columns: image_id, image_w, image_h, num_boxes, boxes, features"
    layout = "butd-tsv"
    columns = ("image_id", "width", "height", "num_boxes", "boxes", "features")
