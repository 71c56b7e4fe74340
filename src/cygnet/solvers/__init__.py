"""Sigma schedules and steppers, shared by sampling and training."""
