"""What a run takes on a GPU that isn't there: a probe's trials on a simulated GPU."""
