from ablate.variants._factor import Factor
window = Factor("window", "model.window", "Which earlier tokens a token may see.")
@window.variant("full", reference="arXiv:1706.03762")
def full() -> None:
    """All."""
