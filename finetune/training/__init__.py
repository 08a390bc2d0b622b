"""How a trial trains: the loop, schedules, evaluation, checkpoints and exact resume, memory, signals."""
