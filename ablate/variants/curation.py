from ablate.variants._factor import Factor
curation = Factor("curation", "data.curation", "Which documents are trained on.")
@curation.variant("none", reference="none at all")
class Everything:
    """All."""
