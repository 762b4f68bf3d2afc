"""What a model is asked for: how a modality is called, and ways to ask for a summary. Light."""

WORDS = {"paper": "paper", "video": "video transcript"}  # other modalities are called as they are
REQUESTS = (  # the first is the plain one; augmentation draws among all
    "Summarize the following {modality}.",
    "Write a summary of this {modality}.",
    "Give a short summary of the {modality} below.",
    "What does the following {modality} say? Summarize it.",
    "Please summarize this {modality}.",
)


def word(modality: str) -> str:
    return WORDS.get(modality, modality)


def requests(modality: str) -> list[str]:
    """Every way to ask for a summary of such a text; the plain one first."""
    return [request.format(modality=word(modality)) for request in REQUESTS]
