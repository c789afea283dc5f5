"""`clip-italian demo`: the web demo of a model on some pictures, or a hub Space of it."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_italian.config import ConfigError
from clip_italian.demo import building, index_commands, serving, sources, space
from clip_italian.demo.answers import Answers
from clip_italian.evaluation.commands import parse
from clip_italian.evaluation.encoders import is_run
from clip_italian.hub.load import RunEncoder, load_model

SAMPLE = ("runs/sample", "data/sample")
ExportModel = Callable[[str, str, str], None]  # run, new folder, tokenizer


@dataclasses.dataclass(frozen=True)
class Demo:
    """Serve a page where people search pictures with words, in Italian and English.

    The defaults are the sample's: after the first commands of the README, `clip-italian demo`
    works at once. Pictures are indexed first; those that are there already are not embedded again.
    """

    model: str = SAMPLE[0]
    """Run folder (newest checkpoint), RUN@best, RUN@STEP, exported folder, or hub id."""
    images: str = SAMPLE[1]
    """Folder of pictures, or records as DATA_DIR/SOURCE or DATA_DIR/SOURCE:SPLIT (validation)."""
    compare: str = ""
    """A second model, to see both side by side; empty takes none."""
    approximate: bool = False
    """Search through an approximate index, made first, if there are 20,000 pictures or more."""
    tokenizer: str = ""
    """Tokenizer of a run whose config names one that is not there; empty takes the config's."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets in everybody who can reach this machine."""
    port: int = 7860
    """Port to listen at."""
    space: str = ""
    """New folder to write: a Space of the hub that starts by itself. Serves nothing then."""
    title: str = "CLIP-Italian"
    """Title of the Space."""


def run(
    words: Sequence[str],
    open_records: sources.OpenRecords,
    export_model: ExportModel,
    tell: Callable[[str], object] = print,
) -> int:
    """Runs `clip-italian demo` until it is stopped; returns the exit status.

    Args:
      words: of the command line.
      open_records: (data_dir, source, split) → collection.
      export_model: (run, new folder, tokenizer): writes the run as an exported folder.
      tell: takes what to print.

    Raises:
      ConfigError: a flag cannot be used, or model and pictures cannot be read.
    """
    flags: Demo = parse(Demo, words, "demo")
    if not 0 < flags.port < 2**16:
        raise ConfigError(f"port = {flags.port} is not allowed; give 1 to 65535")
    if (flags.model, flags.images) == SAMPLE and not all(map(Path.exists, map(Path, SAMPLE))):
        raise ConfigError(
            "the sample is not there yet; make it and train on it, or name --model and --images:\n"
            "  clip-italian prepare sample --data_dir data\n"
            "  python run_hybrid_clip.py --config configs/sample.py"
        )
    pictures = sources.open_pictures(flags.images, open_records)
    if flags.space:
        _write_space(flags, pictures, export_model, tell)
        return 0
    answers = _answers(flags, flags.model, pictures, tell)
    other = _answers(flags, flags.compare, pictures, tell) if flags.compare else None
    shown = "127.0.0.1" if flags.host == "0.0.0.0" else flags.host
    tell(f"the demo is at http://{shown}:{flags.port}/ (English: /en); Ctrl-C ends it")
    serving.serve(answers, other, host=flags.host, port=flags.port)
    return 0


def _answers(
    flags: Demo, model: str, pictures: sources.Pictures, tell: Callable[[str], object]
) -> Answers:
    """A model and its index, brought up to date."""
    loaded = load_model(model, tokenizer=flags.tokenizer)
    encoder = RunEncoder(loaded)
    folder = index_commands.default_folder(model, flags.images, encoder.fingerprint)
    tell(building.update_index(folder, pictures, encoder).text())
    if flags.approximate:
        from clip_italian.demo import approximate  # needs faiss

        tell(approximate.build_approximate(folder, encoder))
    return serving.answers_of(loaded, folder, exact=not flags.approximate)


def _write_space(
    flags: Demo,
    pictures: sources.Pictures,
    export_model: ExportModel,
    tell: Callable[[str], object],
) -> None:
    """Everything into a folder beside the new one, which gets its name when it is whole."""
    if flags.compare:
        raise ConfigError("compare is not for a Space, which holds one model; leave it out")
    if flags.approximate:
        raise ConfigError("approximate is not for a Space, which searches exactly; leave it out")
    if flags.tokenizer and not is_run(flags.model):
        raise ConfigError(
            "tokenizer is not for a Space of an exported model, which is started with its own; "
            "leave it out, or export the model with that tokenizer first"
        )
    target = Path(flags.space)
    space.check_new(target)
    staged = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    model = _model_of(flags, staged, export_model)
    loaded = load_model(model if model != space.MODEL else str(staged / space.MODEL))
    # What is published does not say where the pictures lay.
    pictures = dataclasses.replace(pictures, title=Path(flags.images).resolve().name)
    tell(building.update_index(staged / space.INDEX, pictures, RunEncoder(loaded)).text())
    name = flags.model if model != space.MODEL else Path(flags.model).resolve().name
    count = len(pictures.keys)
    space.write_files(staged, model=model, name=name, title=flags.title, count=count)
    staged.rename(target)
    tell(
        f"{target} is a Space; try it: cd {target} && pip install -r requirements.txt && "
        f"python app.py\npush it: hf upload OWNER/NAME {target} . --repo-type space"
    )


def _model_of(flags: Demo, staged: Path, export_model: ExportModel) -> str:
    """Puts a local model into the Space; returns what the Space calls its model."""
    if is_run(flags.model):
        with_all = staged / ".export"
        export_model(flags.model, str(with_all), flags.tokenizer)
        space.copy_model(with_all, staged)
        shutil.rmtree(with_all)
        return space.MODEL
    if Path(flags.model).is_dir():
        return space.copy_model(Path(flags.model), staged)
    return flags.model
