"""Build a small base here: a Mistral trained from scratch that reads all texts but has learnt to summarise only videos.

Plain cross-entropy over every token of every document, plus cross-entropy over the summary tokens of the videos. The
result is an ordinary model folder: configuration, weights, tokenizer.
"""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from engine import checkpoint, models
from engine.batches import Encoded, Encoder
from engine.corpus.split import Corpus, assemble
from engine.events import PhaseStarted, Saved, Stage, Step
from engine.mixture import generator, integer
from engine.settings import Build, ConfigError
from engine.train import peak_memory
from engine.work import Cancelled, Work

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
SEPARATOR = "<sum>"  # a token that prompts may use to end the source
SAVE_STEPS = 100
WARMUP_STEPS, FLAT, FLOOR = (
    60,
    0.3,
    0.02,
)  # of the learning rate: linear rise, flat up to 30 % of the steps, linear fall
IGNORED = -100


def run(work: Work) -> dict:
    """Build work.folder, unless it is there. Two jobs that want the same base wait for one another on a lock."""
    work.folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(work.folder.with_name(f".{work.folder.name}.lock"), work):
        if not checkpoint.verify(work.folder):
            return {"model": str(work.folder)}
        return _build(work)


@contextlib.contextmanager
def _locked(path: Path, work: Work) -> Iterator[None]:
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if work.cancelled():
                    raise Cancelled from None
                time.sleep(0.5)  # flock has no way to wait for either of two things
        yield


def _build(work: Work) -> dict:
    settings = work.settings
    build = settings.model.build
    if build is None:
        raise ConfigError("model.build is missing, so there is no base to build")
    work.emit(Stage("loading"))
    models.prepare(settings.train)
    corpus = assemble(settings.data, work.cache)
    if not corpus.videos:
        raise ConfigError("data.videos: a base built here learns to summarise videos, and there are none")
    tokenizer = train_tokenizer(corpus, build)
    encoder = Encoder(tokenizer, settings.data)
    videos = [document for document in encoder.encode(corpus.videos) if document]
    papers = [_plain(encoder, record.source) for record in corpus.papers]
    partial = work.folder.with_name(f".{work.folder.name}.partial")
    resumed = checkpoint.newest_step(partial)
    model = (
        MistralForCausalLM.from_pretrained(resumed[1])
        if resumed
        else new_model(build, tokenizer, settings.data.max_length)
    )
    model.to(models.device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=build.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    if resumed:
        optimizer.load_state_dict(torch.load(resumed[1] / "optimizer.pt", weights_only=True))
    _train(work, build, model, optimizer, videos, papers, partial, resumed[0] if resumed else 0, tokenizer.pad_token_id)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    size = checkpoint.save(work.folder, write)
    shutil.rmtree(partial, ignore_errors=True)
    work.emit(Saved(str(work.folder), 0, size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"model": str(work.folder), "parameters": parameters}


def _train(
    work: Work,
    build: Build,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    videos: list[Encoded],
    papers: list[Encoded],
    partial: Path,
    done: int,
    pad: int,
) -> None:
    share = build.paper_share if papers else 0.0
    paper_count = round(build.batch_size * share)
    counts = {"papers": paper_count * build.steps, "videos": (build.batch_size - paper_count) * build.steps}
    work.emit(PhaseStarted("base", build.steps, done, {"papers": share, "videos": 1 - share}, counts))
    clock, tokens = time.perf_counter(), 0
    for index in range(done, build.steps):
        if work.cancelled():
            _save(work, model, optimizer, partial, index)
            raise Cancelled
        chance = generator(build.seed, "base", index)
        rows = chance.choices(videos, k=build.batch_size - paper_count) + chance.choices(
            papers or videos, k=paper_count
        )
        ids, plain, summary = (tensor.to(model.device) for tensor in collate(rows, pad))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        keep = summary != IGNORED
        parts = {
            "text": cross_entropy(logits.flatten(0, 1), plain.flatten(), ignore_index=IGNORED),
            "cross_entropy": cross_entropy(logits[keep], summary[keep]),
        }
        total = sum(parts.values())
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = build.learning_rate * rate_factor(index, build.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(row.ids) for row in rows)
        if (index + 1) % 5 == 0 or index + 1 == build.steps:
            elapsed, clock = time.perf_counter() - clock, time.perf_counter()
            values = {name: value.item() for name, value in parts.items()}
            event = Step(
                index + 1, build.steps, values, sum(values.values()), rate, norm.item(), tokens / elapsed, peak_memory()
            )
            work.emit(event)
            tokens = 0
        if (index + 1) % SAVE_STEPS == 0 and index + 1 < build.steps:
            _save(work, model, optimizer, partial, index + 1)


def _save(work: Work, model: nn.Module, optimizer: torch.optim.Optimizer, partial: Path, done: int) -> None:
    if not done:
        return

    folder = checkpoint.step_folder(partial, done)
    size = checkpoint.save(folder, lambda inside: models.save_training_state(inside, model, optimizer))
    checkpoint.prune(partial, 1)
    work.emit(Saved(str(folder), done, size))


def rate_factor(index: int, steps: int) -> float:
    """Of the peak rate: warm-up, flat, linear decay; a pure function of the step."""
    decay = 1 - max(0.0, index / steps - FLAT) / (1 - FLAT)
    return min(1.0, (index + 1) / WARMUP_STEPS) * max(FLOOR, decay)


def train_tokenizer(corpus: Corpus, build: Build) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training texts; digits stand alone, so that numbers can be copied digit by digit."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=build.vocab_size,
        show_progress=False,
        special_tokens=[*SPECIAL.values(), SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    records = [*corpus.papers, *corpus.videos]
    tokenizer.train_from_iterator((text for record in records for text in (record.source, record.summary)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[SEPARATOR], clean_up_tokenization_spaces=False, **SPECIAL
    )


def new_model(build: Build, tokenizer, positions: int) -> MistralForCausalLM:
    """Random weights from the build's seed."""
    torch.manual_seed(integer(build.seed, "base"))
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=build.hidden_size,
        intermediate_size=3 * build.hidden_size,
        num_hidden_layers=build.num_hidden_layers,
        num_attention_heads=build.num_attention_heads,
        num_key_value_heads=build.num_key_value_heads,
        max_position_embeddings=positions,
        sliding_window=None,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return MistralForCausalLM(config)


def _plain(encoder: Encoder, text: str) -> Encoded:
    """A text to be read, not summarised; cut at data.max_length."""
    tokenizer = encoder.tokenizer
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = [tokenizer.bos_token_id, *ids][: encoder.data.max_length - 1] + [tokenizer.eos_token_id]
    return Encoded(ids, len(ids), 0)


def collate(rows: list[Encoded], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (N, L), padded on the right; labels (N, L-1) of every next token, and of the summary tokens only."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    plain = torch.full((len(rows), length - 1), IGNORED)
    summary = plain.clone()
    for index, row in enumerate(rows):
        end = len(row.ids)
        ids[index, :end] = torch.tensor(row.ids)
        plain[index, : end - 1] = ids[index, 1:end]
        summary[index, row.prompt - 1 : end - 1] = ids[index, row.prompt : end]
    return ids, plain, summary
