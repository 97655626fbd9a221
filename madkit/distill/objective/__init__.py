"""What a step minimises for one micro-batch: task loss, distillation, adversarial passes."""
