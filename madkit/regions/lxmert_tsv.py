"""LXMERT's region TSVs (`train2014_obj36.tsv` and its kind): 36 boxes an image, with detector confidences.

Columns: img_id, img_h, img_w, objects_id (int64), objects_conf (float32), attrs_id (int64), attrs_conf (float32),
num_boxes, boxes (float32 [n, 4]), features (float32 [n, 2048]). The confidences are those of the objects; the original
files are not sorted by them. A row whose confidences are all zero counts as having none. Class and attribute numbers
are left unread.
"""

from __future__ import annotations

from madkit.regions.object_tsv import ObjectTsvReader


class LxmertTsvReader(ObjectTsvReader):
    """Reads LXMERT's layout."""

    _expects = "ten tab-separated columns: img_id, img_h, img_w, ..., num_boxes, boxes, features"
    layout = "lxmert-tsv"
    columns = (
        "img_id",
        "height",
        "width",
        "objects_id",
        "objects_conf",
        "attrs_id",
        "attrs_conf",
        "num_boxes",
        "boxes",
        "features",
    )
