"""One trial, one sweep, one figure: `python examples/depths.py [TRAINING_ROWS]`. Writes runs/ and depths.png here."""

import sys

import finetune

rows = int(sys.argv[1]) if len(sys.argv) > 1 else 300
setting = {"train_size": rows, "evaluation_size": 2 * rows, "max_length": 48, "num_train_epochs": 2,
           "learning_rate": 1e-4, "head_learning_rate": 3e-3, "save_model": False}

record = finetune.run_trial(freeze_depth=4, output_dir="runs/one", **setting)
print("depth 4, seed 1: test accuracy", record.metrics["test"]["accuracy"])

result = finetune.run_sweep({
    "name": "depths", "method": "grid",
    "parameters": {
        "freeze_depth": {"values": [0, 3, 6]},
        "seed": {"values": [1, 2, 3]},
        **{name: {"value": value} for name, value in setting.items()},
    },
})
report = result.report()
print(report.answer)
report.figure("curve").savefig("depths.png", dpi=120)
