"""Our measures against the got10k package (0.1.3), the reference that papers use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tracker_ros.evaluation import metrics

experiments = pytest.importorskip(
    "got10k.experiments", reason="got10k is not installed; runs after `pip install got10k==0.1.3 six`"
)

WIDTH, HEIGHT = 160, 120


def _sequences(count: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth and drifting boxes, some of them partly outside the image; rounded as result files are."""
    random = np.random.RandomState(3)
    found = {}
    for k in range(count):
        n = 30 + 10 * k
        truth = np.concatenate([np.cumsum(random.randn(n, 2) * 2, 0) + 60, 20 + 10 * random.rand(n, 2)], 1)
        boxes = truth + np.cumsum(random.randn(n, 4), 0) * [1, 1, 0.3, 0.3]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
        boxes[0] = truth[0]
        found[f"s{k}"] = np.round(truth, 3), np.round(boxes, 3)
    return found


class _DataSet:
    """What the experiments ask of a data set, without its download."""

    def __init__(self, truths: dict[str, np.ndarray], absent: dict[str, np.ndarray] | None = None) -> None:
        self.seq_names = list(truths)
        self.truths, self.absent, self.return_meta = truths, absent, False

    def __len__(self) -> int:
        return len(self.seq_names)

    def __getitem__(self, key):
        name = key if isinstance(key, str) else self.seq_names[key]
        if not self.return_meta:
            return [], self.truths[name].copy()
        return [], self.truths[name].copy(), {"cover": 8 * ~self.absent[name], "resolution": f"({WIDTH}, {HEIGHT})"}


def _experiment(kind: type, data: _DataSet, tmp_path: Path, monkeypatch) -> dict:
    experiment = object.__new__(kind)
    experiment.dataset, experiment.subset = data, "val"
    experiment.nbins_iou, experiment.nbins_ce = 21, 51
    experiment.result_dir, experiment.report_dir = str(tmp_path / "results"), str(tmp_path / "reports")
    monkeypatch.setattr(kind, "plot_curves", lambda *args, **kwargs: None)
    return experiment.report(["ours"])["ours"]


def test_otb(tmp_path: Path, monkeypatch) -> None:
    sequences = _sequences()
    (tmp_path / "results" / "ours").mkdir(parents=True)
    for name, (_, boxes) in sequences.items():
        np.savetxt(tmp_path / "results" / "ours" / f"{name}.txt", boxes, delimiter=",")
    data = _DataSet({name: truth for name, (truth, _) in sequences.items()})
    theirs = _experiment(experiments.ExperimentOTB, data, tmp_path, monkeypatch)
    for name, (truth, boxes) in sequences.items():
        ours, reference = metrics.evaluate(boxes, truth, (WIDTH, HEIGHT)), theirs["seq_wise"][name]
        np.testing.assert_allclose(ours.success, reference["success_curve"], atol=1e-12)
        np.testing.assert_allclose(ours.precisions, reference["precision_curve"], atol=1e-12)
        assert ours.auc == pytest.approx(reference["success_score"], abs=1e-12)
        assert ours.precision == pytest.approx(reference["precision_score"], abs=1e-12)
        assert ours.op50 == pytest.approx(reference["success_rate"], abs=1e-12)


def test_got10k(tmp_path: Path, monkeypatch) -> None:
    sequences = _sequences()
    absent = {name: np.arange(len(truth)) % 7 == 3 for name, (truth, _) in sequences.items()}
    for name, (_, boxes) in sequences.items():
        folder = tmp_path / "results" / "ours" / name
        folder.mkdir(parents=True)
        np.savetxt(folder / f"{name}_001.txt", boxes, delimiter=",")
        np.savetxt(folder / f"{name}_time.txt", np.full(len(boxes), 0.01), delimiter=",")
    data = _DataSet({n: t for n, (t, _) in sequences.items()}, absent)
    theirs = _experiment(experiments.ExperimentGOT10k, data, tmp_path, monkeypatch)
    pooled, frames = 0.0, 0
    for name, (truth, boxes) in sequences.items():
        truth = np.where(absent[name][:, None], np.nan, truth)
        ours, reference = metrics.evaluate(boxes, truth, (WIDTH, HEIGHT)), theirs["seq_wise"][name]
        assert ours.ao == pytest.approx(reference["ao"], abs=1e-12)
        assert ours.sr50 == pytest.approx(reference["sr"], abs=1e-12)
        pooled, frames = pooled + ours.ao * (ours.frames - 1), frames + ours.frames - 1
    assert pooled / frames == pytest.approx(theirs["overall"]["ao"], abs=1e-12)
