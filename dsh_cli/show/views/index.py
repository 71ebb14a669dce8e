"""An index, and what was done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsh_cli.show.views.shared import View, or_dash, pairs_table, plain_record, printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.index.index import Report

_DONE = ("added", "updated", "skipped", "removed")


def index_report(report: Report) -> View:
    """What an index holds, and what was done to it; failures are told elsewhere, and counted here."""
    record: dict[str, Any] = {
        "index": report.index,
        "bits": report.bits,
        "rows": report.rows,
        "model": report.model,
        "version": report.version,
        "versions": report.versions,
        "whole_versions": report.whole_versions,
        "digests": report.digests,
        "outputs": report.scale is not None,
        "outputs_scale": report.scale,
        **{name: getattr(report, name) for name in _DONE},
    }
    lists = {"failed": report.failed}
    if report.checked is not None:
        record["checked"] = report.checked
        lists = {"repaired": report.repaired, **lists}
    done = [f"{getattr(report, name):,} {name}" for name in _DONE if getattr(report, name)]
    if report.checked is not None:
        done.append(f"rows and {counted(report.checked, 'picture')} checked, {len(report.failed):,} differ")
    elif report.failed:
        done.append(f"{len(report.failed):,} failed")
    rows = {
        "index": printable(report.index),
        "holds": f"{counted(report.rows, 'code')} of {or_dash(report.bits)} bits" if report.rows else "nothing yet",
        "model": or_dash(report.model),
        "version": f"{report.version:,}, {counted(report.versions, 'version')} kept",
    }
    if report.whole_versions not in (None, report.versions):
        rows["version"] += f", {report.whole_versions:,} of them whole"
    if report.scale is not None:
        rows["outputs"] = f"kept, {counted(report.bits or 0, 'byte')} a picture in steps of {report.scale:.4g}"
    if not report.digests:
        rows["digests"] = f"none, so damage does not show; dsh index verify {rows['index']} --repair adds them"
    if done:
        rows["done"] = ", ".join(done)
    plain = plain_record({**record, **{name: len(found) for name, found in lists.items()}})
    said = {name: [{"path": one.path, "error": one.error} for one in found] for name, found in lists.items()}
    return View(lambda width: pairs_table(rows), plain, {**record, **said})
