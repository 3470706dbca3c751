import pytest

from sgr_diffusers.training.options import TrainingOptions, parse_with_settings
from sgr_diffusers.utils.options import OptionParser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`max_train_steps`"),
        ({"max_train_steps": 0}, "`max_train_steps`"),
        ({"max_train_minutes": 0.0}, "`max_train_minutes`"),
        ({"max_train_steps": 1, "train_batch_size": 0}, "`train_batch_size`"),
        ({"max_train_steps": 1, "lr_scheduler": "triangle"}, "`lr_scheduler`"),
        ({"max_train_steps": 1, "lr_scheduler": "constant_with_warmup"}, "`lr_warmup_steps`"),
        ({"max_train_steps": 1, "lr_cooldown_fraction": 0.0}, "`lr_cooldown_fraction`"),
        ({"max_train_steps": 1, "ema_decay": 1.0}, "`ema_decay`"),
        ({"max_train_steps": 1, "learning_rate": 0.0}, "`learning_rate`"),
        ({"max_train_steps": 1, "checkpointing_steps": -1}, "`checkpointing_steps`"),
        ({"max_train_steps": 1, "checkpoints_total_limit": -1}, "`checkpoints_total_limit`"),
        ({"max_train_steps": 1, "max_grad_norm": -1.0}, "`max_grad_norm`"),
        ({"max_train_steps": 1, "adam_beta2": 1.0}, "`adam_beta2`"),
        ({"max_train_steps": 1, "report_to": ("paper",)}, "`report_to`"),
        (
            {"max_train_steps": 1, "overwrite_output_dir": True, "resume_from_checkpoint": "latest"},
            "`overwrite_output_dir`",
        ),
    ],
)
def test_options_name_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def test_epochs_count_the_slices_of_all_processes():
    options = TrainingOptions(num_train_epochs=2.5, train_batch_size=4, gradient_accumulation_steps=2)
    assert options.last_step(n_items=100, n_processes=3) == 11  # 250 slices, 24 a step
    assert TrainingOptions(num_train_epochs=2.0, max_train_steps=3).last_step(100, 1) == 3
    assert TrainingOptions(max_train_minutes=2.0).last_step(100, 1) is None


def parse(*arguments):
    parser = OptionParser()
    TrainingOptions.add_arguments(parser, learning_rate=0.25)
    named = {"theirs": {"train_batch_size": 2, "max_train_steps": 70, "scale_lr": True}}
    return TrainingOptions.from_arguments(parse_with_settings(parser, named, arguments))


def test_named_settings_are_defaults():
    options = parse("--settings", "theirs", "--max-train-steps", "5", "--report-to", "tensorboard", "wandb")
    assert (options.train_batch_size, options.max_train_steps, options.scale_lr) == (2, 5, True)
    assert options.learning_rate == 0.25
    assert list(options.report_to) == ["tensorboard", "wandb"]
    assert parse("--max-train-steps", "5").train_batch_size == 8


@pytest.mark.parametrize("spelling", ["--weight-decay", "--adam-weight-decay", "--adam_weight_decay"])
def test_weight_decay_also_has_the_name_of_diffusers_scripts(spelling):
    assert parse("--max_train_steps", "5", spelling, "0.25").weight_decay == 0.25
