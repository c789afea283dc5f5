"""`clip-italian export`: flags → a folder, checked, with its card, and on the hub."""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from huggingface_hub import HfApi

from clip_italian.collection import Collection
from clip_italian.config import Config, ConfigError
from clip_italian.evaluation import report as reports
from clip_italian.evaluation.encoders import split_run
from clip_italian.evaluation.outcome import MODEL
from clip_italian.hub import access, export, onnx_graphs, open_clip_export, push, readers, verify
from clip_italian.hub.load import LoadedModel, fingerprint, load_model
from clip_italian.hub.model_card import CardFacts, model_card
from clip_italian.hub.options import Export
from clip_italian.hub.torch_layout import to_pytorch
from clip_italian.hub.verify import Check

OpenSet = Callable[[str, str, str, str], Collection]  # name, eval_dir, data_dir, language
Report = tuple[dict, str]  # the report, and what it calls the model
EVALUATION = "evaluation.json"


def run(words: Sequence[str], open_set: OpenSet) -> str:
    """Runs `clip-italian export`; returns what to print.

    Args:
      words: of the command line.
      open_set: (name, eval_dir, data_dir, language) → pictures with captions.

    Raises:
      ConfigError: a flag cannot be used, the written folder is not the model, or the hub refuses.
    """
    flags = tyro.cli(
        Export,
        args=list(words),
        prog="clip-italian export",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    _check(flags)
    lines = [_write(flags, open_set)] if flags.out_dir else []
    folder = flags.out_dir or flags.model
    if flags.dry_run:
        lines.append(push.table(push.plan(folder)))
    elif flags.push_to_hub:
        lines.append(_push(flags, folder))
    return "\n".join(lines)


def _check(flags: Export) -> None:
    """What can be said before anything is loaded."""
    if not flags.out_dir:
        if not (flags.push_to_hub or flags.dry_run):
            raise ConfigError("out_dir is empty; name a new folder to write")
        push.plan(flags.model)  # refuses what no export has written
        _refuse(flags, set(_DEFAULTS) - _PUSHING, "without out_dir the folder is pushed as it is")
    if not flags.push_to_hub:
        _refuse(flags, {"public", "tag"}, "name push_to_hub too")
    elif "/" not in flags.push_to_hub:
        raise ConfigError(f"push_to_hub = {flags.push_to_hub!r} names no owner; give OWNER/NAME")
    else:
        push.check_words(flags.push_to_hub, flags.tag)
        if not flags.dry_run:
            access.check_token(HfApi(token=True))
    if flags.verify == "none":
        _refuse(flags, {"verify_set", "verify_pictures", "eval_dir", "data_dir"}, "verify is none")
    if flags.verify_pictures < 2:
        raise ConfigError(
            f"verify_pictures = {flags.verify_pictures} is not allowed; give 2 or more"
        )
    if flags.out_dir and Path(flags.out_dir).exists():
        raise ConfigError(
            f"out_dir = {flags.out_dir!r} is there already; name a new folder, delete it, or push "
            f"it as it is: clip-italian export --model {flags.out_dir} --push_to_hub ..."
        )
    if flags.onnx:
        onnx_graphs.check_packages()


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Export)}
_PUSHING = {"model", "out_dir", "push_to_hub", "public", "tag", "dry_run"}


def _refuse(flags: Export, names: set[str], reason: str) -> None:
    """Refuses flags that would be ignored."""
    given = sorted(name for name in names if getattr(flags, name) != _DEFAULTS[name])
    if given:
        raise ConfigError(f"{', '.join(given)} would be ignored: {reason}")


def _push(flags: Export, folder: str) -> str:
    card = Path(folder, "README.md")
    if not card.exists() or flags.push_to_hub not in card.read_text(encoding="utf-8"):
        logging.warning(
            "%s does not name %s: its code will not run for others; edit it, or export with "
            "--push_to_hub, which --dry_run holds back", card, flags.push_to_hub,
        )  # fmt: skip
    try:
        address = push.push(folder, flags.push_to_hub, private=not flags.public, tag=flags.tag)
    except ConfigError as error:
        again = f"clip-italian export --model {folder} --push_to_hub {flags.push_to_hub}"
        again += f" --tag {flags.tag}" if flags.tag else ""
        again += " --public" if flags.public else ""
        raise ConfigError(f"{error}\nThe folder is whole; to push it: {again}") from error
    return f"pushed: {address}"


def _write(flags: Export, open_set: OpenSet) -> str:
    """Writes the folder beside its place and moves it there when it is whole and proven."""
    given = load_model(flags.model, tokenizer=flags.tokenizer)
    export.check(given.model)
    report = _report(flags, given)
    loaded = export.exact(given)
    described = _open_clip(flags, loaded) if flags.open_clip else None
    pictures = None if flags.verify == "none" else _verify_set(flags, loaded, open_set)
    if loaded.step is None and Path(flags.model, "README.md").is_file():
        logging.warning(
            "%s: its card, report and training config are not taken over; give --report, "
            "--license, --datasets and --hardware for the new card", flags.model,
        )  # fmt: skip
    final = Path(flags.out_dir).resolve()
    folder = final.with_name(f".{final.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        checks = _fill(flags, loaded, folder, described, pictures)
        if report is not None:
            (folder / EVALUATION).write_text(reports.dump(report[0]), encoding="utf-8")
        found, ours = report or (None, MODEL)
        model_card(_facts(flags, loaded), found, checks, ours=ours).save(folder / "README.md")
        folder.rename(final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return "\n".join([*map(_line, checks), f"written: {flags.out_dir}"])


def _fill(
    flags: Export,
    loaded: LoadedModel,
    folder: Path,
    described: dict | None,
    pictures: Collection | None,
) -> list[Check]:
    """Writes all that is read by a machine, and reads it again."""
    export.write(folder, loaded)
    if flags.sentence_transformers:
        export.write_sentence_transformers(folder)
    if flags.onnx:
        onnx_graphs.write_onnx(str(folder))
    if described is not None:
        open_clip_export.write_open_clip(folder, described, to_pytorch(loaded.params))
        mode = (folder / "config.json").stat().st_mode  # safetensors writes for its owner alone
        (folder / open_clip_export.WEIGHTS).chmod(mode)
    return [] if pictures is None else _checks(flags, loaded, pictures, folder)


def _report(flags: Export, loaded: LoadedModel) -> Report | None:
    """The report for the card, and what it calls the model; refuses that of other weights."""
    folder, _, name = flags.report.partition("#")
    if not folder:
        run = Path(split_run(flags.model)[0])
        if loaded.step is None or not (run / reports.REPORT).is_file():
            return None
        made, _ = reports.read(run)
        if made["step"] == loaded.step:
            return made, MODEL
        logging.warning(
            "%s is of step %s, not %d: the card has no results; evaluate %s and give --report",
            run / reports.REPORT, made["step"], loaded.step, flags.model,
        )  # fmt: skip
        return None
    made, _ = reports.read(folder)
    models = list(dict.fromkeys(one.model for one in reports.results(made)))
    if (name not in models) if name else (len(models) != 1):
        raise ConfigError(f"report: {folder} holds {models}; name one of them as FOLDER#MODEL")
    name = name or models[0]
    own = [one for one in reports.results(made) if one.model == name]
    known = {one.model_fingerprint for one in own} - {""}
    if not known and Path(folder).resolve() != Path(split_run(flags.model)[0]).resolve():
        raise ConfigError(
            f"report: {folder} does not say which weights it is of; evaluate {flags.model} with "
            "`clip-italian evaluate`"
        )
    if known and known != {fingerprint(loaded)}:
        raise ConfigError(
            f"report: {name!r} in {folder} is not {flags.model}, its weights are others; "
            "evaluate the model that is exported"
        )
    if made["step"] is not None and made["step"] != loaded.step:
        raise ConfigError(f"report: {folder} is of step {made['step']}, not {loaded.step}")
    return made, name


def _open_clip(flags: Export, loaded: LoadedModel) -> dict:
    return open_clip_export.open_clip_config(
        loaded.model,
        loaded.tokenizer,
        text_tower=flags.open_clip,
        tokenizer_name=flags.push_to_hub or flags.tokenizer or loaded.config.model.tokenizer,
        max_length=loaded.config.data.max_length,
    )


def _verify_set(flags: Export, loaded: LoadedModel, open_set: OpenSet) -> Collection:
    data = loaded.config.data
    name = flags.verify_set
    if not name and loaded.step is not None:
        name = f"records:{data.sources[0]}"
    if not name:
        raise ConfigError(
            f"verify_set is empty, and {flags.model} names no pictures of its own; name some with "
            "captions (jsonl:FILE, records:SOURCE, mscoco_it_dev, ...), or give --verify none"
        )
    try:
        return open_set(name, flags.eval_dir, flags.data_dir or data.data_dir, flags.language)
    except ConfigError as error:
        raise ConfigError(f"verify_set: {error}; or give --verify none") from error


def _checks(flags: Export, loaded: LoadedModel, pictures: Collection, folder: Path) -> list[Check]:
    reference = verify.make_reference(loaded, pictures, flags.verify_pictures)
    checks = readers.check_flax(folder, reference)
    if flags.verify == "torch":
        checks.append(readers.check_torch(folder, reference))
    if flags.onnx:
        checks.append(readers.check_onnx(folder, reference))
    if flags.open_clip and (found := readers.check_open_clip(folder, reference)):
        checks.append(found)
    for one in checks:
        verify.require(one, folder)
        if one.own_same_top1 is not None and one.own_same_top1 < 0.95 * one.pictures:
            logging.warning(
                "%s reads pictures so differently that only %d of %d find the same caption",
                one.library, one.own_same_top1, one.pictures,
            )  # fmt: skip
    return checks


def _facts(flags: Export, loaded: LoadedModel) -> CardFacts:
    config: Config | None = loaded.config if loaded.step is not None else None
    described = loaded.config.model
    towers = described.init_from, described.vision_tower, described.text_tower
    bias = loaded.params.get("logit_bias")
    return CardFacts(
        name=flags.push_to_hub or flags.out_dir,
        logit_scale=float(np.exp(loaded.params["logit_scale"])),
        projection_dim=loaded.model.module.projection_dim,
        image_size=loaded.model.image_size,
        max_length=loaded.config.data.max_length,
        language=flags.language,
        license=flags.license,
        # A local folder is no name that others could follow.
        base_models=tuple(
            name.partition("@")[0] for name in towers if name and not Path(name).exists()
        ),
        datasets=flags.datasets or (config.data.sources if config else ()),
        config=config,
        hardware=flags.hardware,
        parameters={
            name: sum(int(leaf.size) for leaf in jax.tree.leaves(part))
            for name, part in loaded.params.items()
        },
        logit_bias=None if bias is None else float(bias),
        step=loaded.step,
        padding_idx=export.padding_idx(loaded.model),
        sentence_transformers=flags.sentence_transformers,
        onnx=flags.onnx,
        open_clip=bool(flags.open_clip),
    )


def _line(check: Check) -> str:
    text = (
        f"{check.library}: embeddings differ by up to "
        f"{max(check.image_embeds, check.text_embeds):.1e}, logits by {check.logits:.1e}; "
        f"best caption equal for {check.same_top1} of {check.pictures} pictures of {check.data}"
    )
    if check.own_same_top1 is not None:
        text += f" ({check.own_same_top1} when it reads the pictures itself)"
    return text
