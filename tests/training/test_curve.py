"""The learning curve: what is monitored, and what is read back of a file."""

import pytest

from lamjax.training import curve
from lamjax.training.records import RunRecord


def record(step: int, **more) -> RunRecord:
    return RunRecord(step, 1e-3 / step, 0.5 * step, 2.0, {"rmse_f": 0.1 * step}, more, 3.0, 4.0)


def test_the_monitored_error_is_the_mean_over_tasks_by_probability():
    errors = {"rmse_f": 7.0, "rmse_e:a": 1.0, "rmse_f:a": 3.0, "rmse_f:b": 5.0, "mae_f:b": 9.0}
    assert curve.score("rmse_f", errors, {"": 1.0}) == 7.0
    assert curve.score("rmse_f", errors, {"a": 0.25, "b": 0.75}) == pytest.approx(4.5)
    assert curve.score("rmse_e", errors, {"a": 0.25, "b": 0.75}) == 1.0  # task b has no energies: it does not count
    assert curve.score("mae_f", errors, {"a": 0.25, "b": 0.75}) == 9.0
    assert curve.score("rmse_v", errors, {"a": 0.25, "b": 0.75}) is None


def test_a_curve_is_read_back_and_goes_on_after_the_last_kept_step(tmp_path):
    path = tmp_path / "curve.csv"
    with curve.writing(path, [""], 0) as write:
        write(record(2, rmse_f=0.25, mae_e=0.125))
        write(record(4))
        write(record(6, rmse_f=0.5))
    assert [(row["step"], row["loss"], row["rmse_f_train"]) for row in curve.read(path)][1] == ("4", "2.0", "0.4")
    assert curve.validations(path, [""]) == [(2, {"rmse_f": 0.25, "mae_e": 0.125}), (6, {"rmse_f": 0.5})]
    with curve.writing(path, [""], 4) as write:
        write(record(5, rmse_f=0.75))
    with path.open("a") as file:
        file.write("6,0.1,")  # a row that a kill cut off
    assert [int(row["step"]) for row in curve.read(path)] == [2, 4, 5]
    assert [step for step, _ in curve.validations(path, [""])] == [2, 5]
    assert curve.read(tmp_path / "nothing.csv") == []


def test_errors_of_tasks_have_columns_of_their_own(tmp_path):
    path = tmp_path / "curve.csv"
    with curve.writing(path, ["a", "b"], 0) as write:
        write(record(1)._replace(train={"rmse_f:b": 0.5}, validation={"rmse_f:a": 0.125, "rmse_e:b": 0.25}))
    (row,) = curve.read(path)
    assert (row["rmse_f_train:b"], row["rmse_f_train:a"], row["rmse_f_validation:a"]) == ("0.5", "", "0.125")
    assert curve.validations(path, ["a", "b"]) == [(1, {"rmse_f:a": 0.125, "rmse_e:b": 0.25})]
