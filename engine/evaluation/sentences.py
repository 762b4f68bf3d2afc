"""Sentences for ROUGE-Lsum, without a download: nltk's English Punkt model where it is installed, else one trained here."""

from collections.abc import Callable, Iterable

INSTALLED = "nltk punkt_tab (English)"
TRAINED = "Punkt trained on the documents"
LETTERS = 2_000_000  # of the documents that a model is trained on: training takes about a second per million

Split = Callable[[str], list[str]]


def splitter(texts: Iterable[str]) -> tuple[Split, str]:
    """(text -> sentences, which model it is). texts: what a Punkt model is trained on if none is installed."""
    from nltk.tokenize import PunktTokenizer  # nltk takes a second to import: not for a job that scores nothing

    name = model_name()
    tokenizer = PunktTokenizer("english") if name == INSTALLED else _trained(texts)
    return lambda text: [" ".join(sentence.split()) for sentence in tokenizer.tokenize(text)], name


def model_name() -> str:
    """Which model `splitter` would use."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return TRAINED
    return INSTALLED


def _trained(texts: Iterable[str]):
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    trainer, left = PunktTrainer(), LETTERS
    for text in texts:
        if left <= 0:
            break
        trainer.train(text[:left], finalize=False)
        left -= len(text)
    trainer.finalize_training()
    return PunktSentenceTokenizer(trainer.get_params())
