"""Hugging Face's Trainer with a teacher beside it: VisualBERT of transformers, fine-tuned against a token cache.

    python examples/hf_trainer.py --workspace madkit-workspace

A small VisualBERT with random weights is trained on a part of the embedded benchmark. What belongs to the teacher is
marked with # MAD. The first run draws the data and lets the teacher read it; later runs begin at once. docs/library.md
explains the shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from madkit import CachedTeacher, MADConfig, MADCriterion, TokenCache, token_spans
from madkit.core.workspace import Workspace
from madkit.extract.stage import extract
from madkit.mad.targets import TeacherTargets
from madkit.mad.weigh import gold_probability
from madkit.regions import RegionReader
from madkit.students.load import student_folder
from madkit.tasks.data import open_task


class Taught(nn.Module):
    """Student and projection heads as one module: one optimizer, one wrapper for several GPUs, one checkpoint."""

    def __init__(self, student: transformers.VisualBertForVisualReasoning, criterion: MADCriterion) -> None:
        super().__init__()
        self.student, self.criterion = student, criterion

    def forward(
        self, inputs: dict[str, Tensor], labels: Tensor, targets: TeacherTargets | None = None,
        confidence: Tensor | None = None, progress: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The loss, and what is worth showing."""
        out = self.student(**inputs, labels=labels, output_hidden_states=True)
        if targets is None:  # at evaluation: no teacher
            return {"loss": out.loss, "logits": out.logits}
        taught = self.criterion(
            out.hidden_states,
            inputs["input_ids"].shape[1],
            targets,
            text_mask=inputs["attention_mask"].bool(),
            region_mask=inputs["visual_attention_mask"].bool(),
            label=labels,
            teacher_confidence=confidence,
            student_confidence=gold_probability(out.logits.detach(), labels),
            progress=progress,
        )
        return {"loss": out.loss + taught.loss, "terms": {"task": out.loss.detach(), **taught.terms}}


class MADTrainer(transformers.Trainer):
    """The Trainer, telling the model how far training is and writing the terms into the log."""

    loss_is_scaled_for_ga = False  # the loss is a mean over its batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of task loss and what the teacher says."""
        if "targets" in inputs:
            inputs = {**inputs, "progress": self.state.global_step / self.state.max_steps}
        out = model(**inputs)
        if "terms" in out and (self.state.global_step + 1) % self.args.logging_steps == 0:
            self.log({name: round(float(value), 2) for name, value in out["terms"].items()})
        return (out["loss"], {"logits": out["logits"]}) if return_outputs else out["loss"]


class Collator:
    """Questions as VisualBERT reads them and, for training, what the teacher says about them."""

    def __init__(self, tokenizer: Any, regions: RegionReader, teacher: CachedTeacher) -> None:
        self.tokenizer, self.regions, self.teacher = tokenizer, regions, teacher

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of a batch."""
        images, texts = [item["image"] for item in items], [item["text"] for item in items]
        encoding = self.tokenizer(texts, padding=True, return_tensors="pt")
        found = [self.regions.get(image) for image in images]
        features = pad_sequence([torch.from_numpy(one.features) for one in found], batch_first=True)
        boxes = pad_sequence([torch.from_numpy(one.boxes) for one in found], batch_first=True)
        mask = pad_sequence([torch.ones(len(one.boxes), dtype=torch.bool) for one in found], batch_first=True)
        inputs = {**encoding, "visual_embeds": features, "visual_attention_mask": mask.float()}
        inputs["visual_token_type_ids"] = torch.ones(mask.shape, dtype=torch.long)
        batch = {"inputs": inputs, "labels": torch.tensor([item["label"] for item in items])}
        if "confidence" in items[0]:  # MAD
            spans, segments = token_spans(encoding)
            batch["targets"] = self.teacher.targets(
                images=images, texts=texts, spans=spans, segments=segments, boxes=boxes, region_mask=mask
            )
            batch["confidence"] = torch.tensor([item["confidence"] for item in items])
        return batch


def main() -> None:
    """Extract once, train beside the teacher, evaluate without it, save the student alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", help="folder for data and cache")
    parser.add_argument("--part", default="demo", help="of the embedded benchmark: tiny, demo or full")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", default="hf-trainer", help="folder for the student")
    args = parser.parse_args()

    workspace = Workspace.at(args.workspace)
    (store,) = extract(workspace, "mini", ["snli-ve"], splits=["train", "test"], part=args.part)  # once
    data = open_task(workspace, "snli-ve", part=args.part)
    train, test = (
        [{"image": e.image.id, "text": e.context[0].text, "label": e.label} for e in list(data.examples(split))[:2000]]
        for split in ("train", "test")
    )
    teacher = CachedTeacher(TokenCache.open(store.path))  # MAD
    images, texts, labels = ([item[name] for item in train] for name in ("image", "text", "label"))
    # MAD: how probable the right label is for a probe on the teacher's vectors, which has not seen the example
    sure = teacher.confidence(images=images, texts=texts, target=torch.tensor(labels))
    train = [{**item, "confidence": float(value)} for item, value in zip(train, sure, strict=True)]

    core = BertWordPieceTokenizer(str(student_folder("mini-uniter") / "vocab.txt"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384}
    sizes |= {"vocab_size": len(tokenizer), "visual_embedding_dim": data.regions().dim}
    kind = transformers.VisualBertConfig(num_labels=len(data.spec.labels), **sizes)
    torch.manual_seed(0)
    student = transformers.VisualBertForVisualReasoning(kind)
    criterion = MADCriterion(MADConfig(weight=1.0), kind.hidden_size, teacher.vision_dim, teacher.text_dim)
    trainer = MADTrainer(
        model=Taught(student, criterion),
        args=transformers.TrainingArguments(
            args.out, max_steps=args.steps, per_device_train_batch_size=32, per_device_eval_batch_size=250,
            learning_rate=5e-4, logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, label_names=["labels"], dataloader_pin_memory=torch.cuda.is_available(),
        ),
        data_collator=Collator(tokenizer, data.regions(), teacher),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )  # fmt: skip
    trainer.train()
    print(f"test accuracy {100 * trainer.evaluate()['eval_accuracy']:.1f} % (chance {data.spec.chance:.1f} %)")
    student.save_pretrained(args.out)  # no heads, no teacher: VisualBertForVisualReasoning.from_pretrained reads it


if __name__ == "__main__":
    main()
