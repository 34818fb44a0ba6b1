"""Numbers of a trial in MLflow's local file store; in a stand-in where the library is not there."""

import sys
from types import SimpleNamespace

import pytest
from tiny_recipes import tiny

from nni_gconv.errors import ConfigError
from nni_gconv.recipe import run_recipe


class Client:
    """The part of MLflow's client that is used, kept in memory."""

    runs: dict = {}  # noqa: RUF012

    def log_metric(self, run, name, value, step):
        self.runs[run]["metrics"].append((name, step, value))

    def set_terminated(self, run):
        self.runs[run]["ended"] = True


class Run:
    def __init__(self, run_name):
        self.info = SimpleNamespace(run_id=f"run{len(Client.runs)}")
        Client.runs[self.info.run_id] = {"name": run_name, "metrics": [], "params": {}}
        Run.last = self

    @classmethod
    def log_params(cls, params):
        Client.runs[cls.last.info.run_id]["params"].update(params)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def mlflow(monkeypatch):
    Client.runs = {}
    fake = SimpleNamespace(
        MlflowClient=Client,
        start_run=Run,
        log_params=Run.log_params,
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return Client


@pytest.mark.slow
def test_every_epoch_once_and_the_result_last(mlflow, tmp_path):
    recipe = tiny(report={"latency": None, "to": ["mlflow"]})
    result = run_recipe(recipe, output=tmp_path / "run", quiet=True)
    (run,) = mlflow.runs.values()
    assert run["name"] == "tiny"
    assert run["params"]["prune.budget.macs"] == "0.6"
    epochs = [(name, step) for name, step, _ in run["metrics"] if name.endswith("/val_accuracy")]
    assert epochs == [(f"{s}/val_accuracy", e) for s in ("train", "finetune") for e in (1, 2)]
    final = {name: value for name, step, value in run["metrics"] if "/" not in name}
    assert final == pytest.approx(result.metrics)
    assert run["ended"]
    run_recipe(recipe, output=tmp_path / "run", quiet=True)  # goes on in the same run
    assert len(mlflow.runs) == 1
    again = [(n, s) for n, s, _ in run["metrics"] if n.endswith("/val_accuracy")]
    assert again == epochs


def test_a_missing_library_is_said_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"report.to: wandb is not installed: pip install"):
        run_recipe(tiny(report={"latency": None, "to": ["wandb"]}), output=tmp_path / "run")
    assert not (tmp_path / "run" / "train").exists()


@pytest.mark.slow
def test_mlflow_itself_keeps_them_in_files(monkeypatch, tmp_path):
    real = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    real.set_tracking_uri((tmp_path / "store").as_uri())
    recipe = tiny(report={"latency": None, "to": ["mlflow"]})
    result = run_recipe(recipe, output=tmp_path / "run", quiet=True)
    kept = real.get_run((tmp_path / "run" / "mlflow_run.txt").read_text())
    assert kept.data.metrics["accuracy"] == pytest.approx(result.metrics["accuracy"])
    assert kept.data.params["model.name"] == "resnet8"
    assert kept.info.status == "FINISHED"
