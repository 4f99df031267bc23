"""Runs for other programs: the PyTorch database's schema v3, CSV, Parquet; a gate's verdicts as JUnit or markdown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import is_file, write_bytes
from harness.base.secrets import cleaned
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.report.spreadsheet import quoted

FORMATS = ("pytorch-v3", "csv", "parquet", "junit", "markdown")
_PLACES = ("source", "line", "offset", "subject", "place")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness export``."""
    parser.add_argument(
        "names", metavar="RUN", nargs="+", help="a run, 'last', or a path; for junit and markdown a gate's folder"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, default=Path("results/runs"), help="where runs lie")
    parser.add_argument("--documented", metavar="FOLDER", type=Path, help="published figures to use instead")


def run(args: argparse.Namespace) -> int:
    """Write the runs in the format asked for; lines that could not be read are named on standard error.

    CSV and Parquet hold every line of the records, a row each, with the run's name first; the PyTorch records are made
    of every measurement that was not discarded. Raises HarnessError for a run that is not there.
    """
    if args.format in ("junit", "markdown"):
        from harness.judge import gatefile
        from harness.report import junit

        for name in args.names:
            if not is_file(Path(name)) and not is_file(Path(name) / "gate.json"):
                raise HarnessError(
                    f"{name}: --format {args.format} is of gates: name a gate's folder, as results/gates/NAME; "
                    "a session's JUnit is written by pytest itself, with --junitxml FILE"
                )
        write = junit.junit if args.format == "junit" else junit.markdown
        return _write(args, write([gatefile.load(Path(name)) for name in args.names]))
    from harness.records import columns

    opened = [Run.open(args.runs, name) for name in args.names]
    found = columns.load(opened, columns=columns.SCHEMA.names)
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if args.format == "pytorch-v3":
        from harness.report import pytorch_v3

        lines = (line for line in found.lines(found.kind("measurement")) if isinstance(line, Measurement))
        records = pytorch_v3.records(lines, Documented.load(args.documented))
        kept = (type(record).model_validate(cleaned(record.model_dump())) for record in records)
        rows = ",\n".join(record.model_dump_json() for record in kept)
        return _write(args, f"[\n{rows}\n]\n".encode() if records else b"[]\n")
    return _write(args, (_csv if args.format == "csv" else _parquet)(_rows(found)))


def _rows(found: Any) -> Any:
    """Return every record line as a row that can be read without this harness."""
    import pyarrow as pa

    rows = found.kind("header", "measurement", "failure", "judgement", "timing", "outcome")
    names = [found.runs[source].name for source in rows["source"].to_pylist()]
    rows = rows.add_column(0, "run", pa.array(names, pa.string()))
    rows = rows.drop_columns(list(_PLACES))
    for name in (field.name for field in rows.schema if field.type == pa.string()):
        texts = rows[name].to_pylist()
        # Records of before they were cleaned as they are written.
        if (kept := cleaned(texts)) is not texts:
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(kept, pa.string()))
    return rows


def _csv(rows: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.csv

    for name in (field.name for field in rows.schema if field.type == pa.string()):
        texts = [None if it is None else quoted(it) for it in rows[name].to_pylist()]
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    for name in ("samples", "warmup"):
        texts = ["" if it is None else " ".join(map(repr, it)) for it in rows[name].to_pylist()]
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(texts))
    sink = pa.BufferOutputStream()
    # Every text quoted: a lone carriage return would break the line otherwise.
    pyarrow.csv.write_csv(rows, sink, pyarrow.csv.WriteOptions(quoting_style="all_valid"))
    return bytes(sink.getvalue())


def _parquet(rows: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return bytes(sink.getvalue())


def _write(args: argparse.Namespace, data: bytes) -> int:
    if args.output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return 0
    write_bytes(args.output, data)
    return 0
