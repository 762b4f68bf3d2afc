"""Settings from YAML files and overrides, and back: reading, complaining in the user's words, tables. Light."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from engine.settings import SOURCES, ConfigError, Settings, first_line

# Names people bring from other trainers, and ours. Accepted at the top level and inside the section.
ALIASES = {
    "model_name_or_path": "model.name_or_path",
    "base_model": "model.name_or_path",
    "torch_dtype": "model.dtype",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "learning_rate": "train.learning_rate",
    "loraplus_lr_ratio": "train.loraplus_lr_ratio",
    "warmup_ratio": "train.warmup_ratio",
    "warmup_steps": "train.warmup_steps",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "per_device_train_batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "mixed_precision": "train.mixed_precision",
    "logging_steps": "train.logging_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_total_limit",
    "seed": "train.seed",
    "resume_from_checkpoint": "train.resume_from",
    "early_stopping_patience": "train.early_stopping_patience",
    "report_to": "train.report_to",
    "eval_steps": "evaluate.every_steps",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_length": "data.max_length",
    "train.truncate": "data.truncate",
    "truncate": "data.truncate",
    "max_new_tokens": "generate.max_new_tokens",
    "ewc_lambda": "ewc.lambda",
}
# Names we know but cannot take over one to one.
ADVICE = {
    "num_train_epochs": "set epochs of each phase in curriculum.phases",
    "num_epochs": "set epochs of each phase in curriculum.phases",
    "output_dir": "checkpoints go to checkpoints/RUN/PHASE; name the run with --run",
    "lr_scheduler_type": "the schedule is warm-up, then cosine; see train.warmup_ratio",
    "val_set_size": "use data.test_share",
    "bf16": "use train.mixed_precision: bf16 and model.dtype: bfloat16",
}

COMMAND_LINE = "command line"


def load(path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Settings from a YAML file (with its `extends` chain) and `section.name=value` overrides.

    Raises ConfigError that lists every mistake, a line each: file, setting, what is wrong, the remedy.
    """
    merged, origin = _read_chain(Path(path), ()) if path is not None else ({}, {})
    mistakes = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            mistakes.append(f"{COMMAND_LINE}: {override}: not a setting. Write section.name=value")
            continue
        try:
            _place(merged, origin, name.strip(), yaml.safe_load(text), COMMAND_LINE)
        except (yaml.YAMLError, ConfigError) as error:
            mistakes.append(f"{COMMAND_LINE}: {name}: {first_line(error)}")
    where = str(path) if path is not None else COMMAND_LINE
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(*mistakes, *(_explain(item, origin, where) for item in error.errors())) from None
    if mistakes:
        raise ConfigError(*mistakes)
    return settings


def _read_chain(path: Path, seen: tuple[Path, ...]) -> tuple[dict, dict]:
    """The merged mapping of a file and all it extends, and which file each setting came from."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(p.name for p in (*seen, resolved))
        raise ConfigError(f"{path}: extends goes in a circle: {chain}. Remove one of these lines")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file. See configs/ for those that exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(
            f"{path}:{line} not valid YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of sections (model:, lora:, ...), not a {type(content).__name__}"
        )
    parent = content.pop("extends", None)
    merged, origin = _read_chain(path.parent / str(parent), (*seen, resolved)) if parent else ({}, {})
    mistakes = []
    for name, value in _leaves(content):
        try:
            _place(merged, origin, name, value, str(path))
        except ConfigError as error:
            mistakes.append(f"{path}: {name}: {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return merged, origin


def _leaves(content: dict, prefix: str = ""):
    """(dotted name, value) of every setting; lists and mixtures count as one value."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _place(merged: dict, origin: dict, name: str, value: Any, where: str) -> None:
    """Put one value at its dotted place. List items are reached by number, phases also by name."""
    name = _canonical(name)
    origin[name] = where
    node, (*path, last) = merged, name.split(".")
    for key in path:
        if isinstance(node, list):
            node = node[_index(node, key)]
        else:
            if not isinstance(node.get(key), (dict, list)):
                node[key] = {}
            node = node[key]
    if isinstance(node, list):
        node[_index(node, last)] = value
    else:
        node[last] = value


def _canonical(name: str) -> str:
    section, _, last = name.rpartition(".")
    target = ALIASES.get(last)
    if name in ALIASES:
        return ALIASES[name]
    if target and section in ("", target.partition(".")[0]):
        return target
    return name


def _index(items: list, key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"no item {key} in a list of {len(items)}. Use a number from 0, or one of {names}")


def _explain(item: dict, origin: dict, default: str) -> str:
    """One validation error in the user's words."""
    place = [str(part) for part in item["loc"]]
    name = ".".join(place).replace("lambda_", "lambda")
    where = next((origin[n] for n in (name, *(o for o in origin if o.startswith(name + "."))) if n in origin), default)
    if item["type"] == "extra_forbidden":
        return f"{where}: {name}: unknown setting. {_suggestion(name)}"
    if item["type"] == "missing":
        return f"{where}: {name}: missing. Add it"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = f" (not {value!r})" if not isinstance(value, (dict, BaseModel)) and value is not None else ""
    return f"{where}: {name}: {message}{shown}" if name else f"{where}: {message}"


def _suggestion(name: str) -> str:
    last = name.rpartition(".")[2]
    if last in ADVICE:
        return ADVICE[last][0].upper() + ADVICE[last][1:]
    known = [row[0] for row in rows()]
    bare = re.sub(r"\.\d+\.", "[].", name)
    close = difflib.get_close_matches(bare, [*known, *ALIASES], n=1, cutoff=0.6)
    if not close:
        close = [k for k in known if difflib.get_close_matches(last, [k.rpartition(".")[2]], cutoff=0.75)][:1]
    if close:
        return f"Did you mean {ALIASES.get(close[0], close[0])}?"
    section = bare.partition(".")[0]
    fields = [k.rpartition(".")[2] for k in known if k.startswith(section + ".")]
    return f"Known here: {', '.join(fields)}" if fields else f"Sections: {', '.join(Settings.model_fields)}"


def rows(section: type[BaseModel] = Settings, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted name, type, default, meaning) of every setting, for the table, the forms and did-you-mean."""
    table = []
    for field_name, field in section.model_fields.items():
        name = prefix + (field.alias or field_name)
        inner = next((t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is not None:
            mark = "[]." if "tuple" in str(field.annotation) else "."
            table += rows(inner, name + mark)
            continue
        default = "" if field.is_required() or field.default is None else _plain(field.default)
        table.append((name, _type_name(field), default, field.description or ""))
    return table


def _types(annotation) -> list:
    parts = getattr(annotation, "__args__", None)
    return [annotation] if not parts else [t for part in parts for t in _types(part)]


def _plain(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) and not value.isidentifier() else f"{value}"


def _type_name(field) -> str:
    text = str(field.annotation).replace("typing.", "").replace("pathlib.", "").replace(" | None", "")
    text = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rpartition(".")[2], text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: " / ".join(p.strip(" '") for p in match[1].split(",")), text)
    return text.replace("tuple[str, ...]", "list").replace("Path", "file")


def dump(settings: Settings) -> dict:
    """A plain mapping from which `load` gives the same settings; paths absolute, for spec.yaml."""
    content = settings.model_dump(by_alias=True, mode="json")
    for section, name in (("data", s) for s in (*SOURCES, "documents", "terms", "test")):
        if content[section][name]:
            content[section][name] = str(Path(content[section][name]).absolute())
    for section, name in (("model", "adapter"), ("train", "resume_from")):
        if content[section][name]:
            content[section][name] = str(Path(content[section][name]).absolute())
    return content


def leaves(settings: Settings) -> list[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    return list(_leaves(dump(settings)))


def differences(settings: Settings, other: Settings) -> list[tuple[str, Any, Any]]:
    """(name, value, other value) of every setting that differs."""
    left, right = settings_leaves(dump(settings)), settings_leaves(dump(other))
    return [
        (name, left.get(name), right.get(name)) for name in sorted(left | right) if left.get(name) != right.get(name)
    ]


def settings_leaves(content: dict) -> dict[str, Any]:
    """{dotted name: value} of dumped settings, also of a version that knows other names."""
    return dict(_leaves(content))


def table() -> str:
    """The settings as a Markdown table: docs/settings.md."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows():
        cells = (f"`{name}`", kind, default and f"`{default}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "\\n") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print("# Settings\n\nGenerated by `python -m engine.configs`; a test keeps it true.\n")
    print(table(), end="")
