"""``publish``: upload a quantized checkpoint to the Hugging Face hub, with a card made from records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.files import default_root, is_folder
from harness.base.interruption import Interruption
from harness.base.text import one_line
from harness.matrix.load import load
from harness.matrix.schema import Model
from harness.publish import card, hub
from harness.publish.checkpoint import open_checkpoint
from harness.publish.publish import (
    ALLOWED,
    Cleaner,
    Records,
    Refused,
    allowed,
    check_base,
    check_names,
    choose,
    hub_id,
    name_of,
    named,
    screen,
    stored,
    write_folder,
)
from harness.records.published import Documented
from harness.records.schema import ModelIdentity
from harness.runtime.store import Store
from harness.servers import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness publish``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or MODEL:RECIPE of the cache")
    parser.add_argument("--repo", metavar="USER/NAME", required=True, help="the repository; made if it is not there")
    parser.add_argument("--records", metavar="RUN", nargs="+", default=["last"], help="the runs with its figures")
    parser.add_argument("--dry-run", metavar="FOLDER", type=Path, help="write everything to FOLDER and ask no hub")
    parser.add_argument("--card-only", action="store_true", help="with --dry-run: the card of what is not here")
    parser.add_argument("--allow", metavar="WHAT", choices=tuple(ALLOWED), action="append", default=[], help=allowed())
    parser.add_argument("--base-model", metavar="ID", default="", help="the unquantized model's id on the hub")
    parser.add_argument("--license", metavar="ID", default="", help="the model's licence as the hub names it, e.g. mit")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--replace", action="store_true", help="put these weights in place of others that are there")
    parser.add_argument(
        "--cache", metavar="FOLDER", type=Path, help="where artifacts are kept (default: where the runs kept them)"
    )
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")


def _listed(model: ModelIdentity) -> Model | None:
    """Return the entry of the matrix here that a record's weights are of, if there is one."""
    try:
        found = load(shipped.matrix(Path.cwd()), registry.names()).models.get(model.name)
    except HarnessError:
        return None
    sources = {f"hub:{found.hub}", f"package:{found.package.name if found.package else ''}"} if found else set()
    return found if model.source in sources else None


def run(args: argparse.Namespace) -> int:
    """Publish one checkpoint, or write what would be published.

    Raises HarnessError for what is not fit to go out, before anything is sent. The hub's token comes from
    ``hf auth login`` or ``HF_TOKEN``, never from the command line.
    """
    check_names(args)
    records = Records.read(args.runs, args.records)
    # What the runs were measured with lies where they kept it, if nobody says otherwise.
    stores = [
        Store(root) for root in ([args.cache] if args.cache else dict.fromkeys([*records.caches, default_root()]))
    ]
    checkpoint = None
    folder = Path(args.checkpoint)
    if is_folder(folder):
        for store in stores:
            checkpoint = open_checkpoint(folder, store)
            if checkpoint.origin:
                break
        assert checkpoint  # noqa: S101 - for the type alone
        cell = choose(records, checkpoint, store, args.allow)
    else:
        cell = named(records, args.checkpoint)
        if not args.card_only:
            store, folder = stored(records, cell, stores)
            checkpoint = open_checkpoint(folder, store)
    if cell.model.came_quantized and not args.base_model:
        raise Refused(
            f"{args.checkpoint} came quantized when it was measured, so the records do not tell from which model: name "
            "that one with --base-model ID"
        )
    base_model, license = args.base_model or hub_id(cell.model), args.license
    if listed := _listed(cell.model):
        base_model, license = base_model or listed.hub or "", license or listed.license or ""
    check_base(cell.model, base_model, args.allow)
    records = records.of(cell, checkpoint.origin if checkpoint and not cell.model.came_quantized else None)
    measurements, failed = screen(records, cell, args.allow)
    # Taken out of each text by itself: what stands in its place means something of its own to YAML.
    clean = Cleaner(hub.token() or "")
    contents = card.Contents(
        repository=args.repo,
        model=clean.line(cell.model),
        recipe=clean.line(cell.recipe),
        measurements=[clean.line(it) for it in measurements],
        config=clean(checkpoint.config if checkpoint else {}),
        servers=registry.by_hand(),
        runs=clean(records.runs),
        failed=[clean.line(it) for it in failed],
        base_model=base_model if cell.model.weights == "pretrained" else args.base_model,
        license=license,
    )
    text = card.write_card(contents, Documented.load())
    for told, what, option in (
        (contents.base_model, "base model", "--base-model"),
        (contents.license, "licence", "--license"),
    ):
        if not told:
            print(f"the card names no {what}: give it with {option} ID", file=sys.stderr)
    for name in checkpoint.left_out if checkpoint else ():
        print(f"left out: {one_line(name)} is no part of a checkpoint", file=sys.stderr)
    files = checkpoint.files if checkpoint and not args.card_only else ()
    if args.dry_run:
        write_folder(args.dry_run, text, files)
    else:
        # At once: a file that is being sent may take an hour more, and nothing is written here.
        with Interruption(lambda: f"interrupted. {hub.AGAIN}", at_once=True):
            if contents.base_model:
                hub.check_there(contents.base_model, private=args.private)
            address = hub.upload(args.repo, text, files, private=args.private, replace=args.replace)
        print(f"published {name_of(cell)}: {address}")
    return 0
