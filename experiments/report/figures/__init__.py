"""The figures of a run and of a study, all in one style."""
