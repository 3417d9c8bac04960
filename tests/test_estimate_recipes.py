"""Real recipes on fake tensors: what the estimate says, against real tensors and against trials."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from autobatch.errors import RunProblems, UsageError
from autobatch.estimate.cards import CARDS, card_named
from autobatch.estimate.estimator import Question, estimate
from autobatch.estimate.forecaster import forecast
from autobatch.estimate.recording import Recorded, recorded
from autobatch.estimate.records import NoEstimate
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trace import Kind
from autobatch.probing.forecast import Forecast, Occasion
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.job import run_probe
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.records import ProbeRequest, ProbeResult, Status
from autobatch.runs.results import load_result

MakeRun = Callable[..., Path]
MIB = 2**20

#: 128 tokens, 256 wide, 2 layers, fp32: conftest.laid_out.
TOKENS = 128


@pytest.fixture(scope="module")
def server() -> ForkServer:
    return ForkServer(MALLOC_ENVIRONMENT, "cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, laid_out: Path) -> Path:
    """A config for a card, by itself: no weights, no tokenizer, no dataset beside it."""
    content = OmegaConf.load(laid_out / "run1" / "finetune.yaml")
    content.device = "cuda"
    path = tmp_path_factory.mktemp("config") / "my.yaml"
    path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    return path


def curve_of(path: Path, server: ForkServer, *settings: str) -> Recorded:
    return recorded(read_subject(path, settings=settings), server, timeout_s=300, keep=None)


@pytest.fixture(scope="module")
def plain(config: Path, server: ForkServer) -> Recorded:
    return curve_of(config, server)


def test_parameters_and_state_are_what_the_config_says(plain: Recorded, config: Path) -> None:
    model = OmegaConf.load(config).model
    width, rank = int(model.embed_dim), int(model.lora_rank)
    key_value = width // int(model.num_heads) * int(model.num_kv_heads)
    linears = {"q_proj": (width, width), "v_proj": (width, key_value), "output_proj": (width, width)}
    adapters = sum(rank * (i + o) for name, (i, o) in linears.items() if name in model.lora_attn_modules)
    if model.apply_lora_to_mlp:
        adapters += 3 * rank * (width + int(model.intermediate_dim))
    adapters *= int(model.num_layers)

    by_kind = plain.curve.at(4).by_kind

    # Two moments of each adapter weight, in fp32, each rounded to 512 bytes; and a step count each.
    assert by_kind[Kind.OPTIMIZER] == pytest.approx(2 * 4 * adapters, rel=0.02)
    assert by_kind[Kind.PARAMETERS] > 4 * (int(model.vocab_size) * width + adapters)


def test_a_card_keeps_no_mask_and_the_cpu_does(config: Path, plain: Recorded, server: ForkServer) -> None:
    on_cpu = curve_of(config, server, "device=cpu")

    def slope(found: Recorded) -> int:
        # Over many sequences: a card's allocator keeps rests of less than 1 MiB, now here, now there.
        return (found.curve.at(128).training_bytes - found.curve.at(28).training_bytes) // 100

    # A dense mask is TOKENS x TOKENS bytes a sequence, and each layer keeps its own in the query's dtype.
    assert slope(on_cpu) - slope(plain) > TOKENS * TOKENS * (1 + 4)


@pytest.mark.parametrize(
    ("settings", "smaller"),
    [
        pytest.param(("enable_activation_checkpointing=True",), Kind.ACTIVATIONS, id="checkpointing"),
        pytest.param(("enable_activation_offloading=True",), Kind.ACTIVATIONS, id="offloading"),
        pytest.param(("optimizer=bitsandbytes.optim.AdamW8bit",), Kind.OPTIMIZER, id="8-bit"),
        pytest.param(("optimizer=torchao.optim.AdamW4bit",), Kind.OPTIMIZER, id="4-bit"),
        pytest.param(("model.quantize_base=True", "dtype=bf16"), Kind.PARAMETERS, id="qlora"),
    ],
)
def test_a_setting_saves_what_it_is_for(
    config: Path, plain: Recorded, server: ForkServer, settings: tuple[str, ...], smaller: Kind
) -> None:
    changed = curve_of(config, server, *settings)

    assert changed.curve.at(8).by_kind[smaller] < 0.7 * plain.curve.at(8).by_kind[smaller]
    assert changed.off_line_fraction < 0.005


def test_a_question_is_answered_for_every_card(config: Path, server: ForkServer) -> None:
    question = Question(CARDS["t4-16gb"], what_if=("tokenizer.max_seq_len=64", "tokenizer.max_seq_len=null"))

    found = estimate(read_subject(config), question, server)

    largest = found.fitting.batch_size
    assert found.fitting.lowest <= largest <= found.fitting.highest
    assert found.batch_size == largest
    assert found.reserved_bytes <= 0.7 * CARDS["t4-16gb"].total_bytes
    assert sum(found.by_kind.values()) == found.allocated_bytes
    assert [card.card for card in found.cards] == list(CARDS)
    as_it_is, shorter, without = found.what_if
    assert shorter.fitting is not None
    assert as_it_is.fitting is not None
    assert shorter.fitting.batch_size > 1.8 * as_it_is.fitting.batch_size
    assert (without.fitting, without.peak_bytes) == (None, None)
    assert "max_seq_len is null" in without.why


def test_what_is_on_file_is_not_recorded_again(make_run: MakeRun, server: ForkServer) -> None:
    run = make_run()
    kept = run / "probe" / "estimate.json"
    subject = read_subject(run)

    first = recorded(subject, server, timeout_s=300, keep=kept)
    again = recorded(subject, server, timeout_s=0.001, keep=kept)

    assert again.seconds == 0
    assert again.curve.at(7) == first.curve.at(7)
    other = read_subject(run, settings=("model.lora_rank=4",))
    with pytest.raises(NoEstimate, match="took longer"):
        recorded(other, server, timeout_s=0.001, keep=kept)
    kept.write_text("{", encoding="utf-8")
    with pytest.raises(NoEstimate, match="took longer"):
        recorded(subject, server, timeout_s=0.001, keep=kept)


def test_a_config_is_resolved_in_one_thread_alone(config: Path, server: ForkServer) -> None:
    threads = set()

    def resolved() -> int:
        threads.add(threading.current_thread())
        return 0

    OmegaConf.register_new_resolver("noting_threads", resolved)
    try:
        subject = read_subject(config, settings=("seed=${noting_threads:}",))
        with pytest.raises(NoEstimate, match="took longer"):
            recorded(subject, server, timeout_s=0.001, keep=None)
    finally:
        OmegaConf.clear_resolver("noting_threads")

    # Two at once find each other's interpolations, and take them for recursive ones.
    assert threads == {threading.current_thread()}


def test_a_recipe_that_reads_values_is_refused_with_its_own_words(
    make_run: MakeRun, server: ForkServer
) -> None:
    run = make_run("reading_values.py")

    with pytest.raises(NoEstimate, match=r"no estimate: the recipe doesn't run on fake tensors: .*numpy"):
        recorded(read_subject(run), server, timeout_s=300, keep=None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param("nonsense", "write key=value", id="no value"),
        pytest.param("foo.bar=1", "no section foo", id="no section"),
        pytest.param("batch_size=[1", "can't be set", id="not YAML"),
    ],
)
def test_settings_that_cant_be_used(config: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_subject(config, settings=(setting,))


def test_a_config_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(RunProblems, match="no such file or directory"):
        read_subject(tmp_path / "absent.yaml")


def test_an_unknown_card_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="h100-80gb"):
        card_named("gtx-1080")


class Scaled:
    """A forecast that is wrong by a factor."""

    def __init__(self, forecast: Forecast, factor: float) -> None:
        self._forecast = forecast
        self._factor = factor
        self.seconds = forecast.seconds

    def peak_bytes(self, batch_size: int) -> int:
        return round(self._forecast.peak_bytes(batch_size) * self._factor)

    def largest(self, target_bytes: int, at_most: int) -> int:
        return max(1, round(self._forecast.largest(target_bytes, at_most) / self._factor))


@pytest.mark.recipe
def test_a_probe_begins_at_the_estimate_and_ends_where_it_would_without(make_run: MakeRun) -> None:
    run = make_run()
    seen: list[Forecast] = []

    def keeping(occasion: Occasion) -> Forecast:
        seen.append(forecast(occasion))
        return seen[-1]

    request = ProbeRequest(str(run), max_batch_size=1, target_fraction=1.0)
    one = run_probe(request, forecaster=keeping).peak_bytes
    assert one is not None
    # The target lies midway between the peaks of 6 and 7 as they will be measured, where noise decides nothing.
    estimated_off = one - seen[0].peak_bytes(1)
    target = (seen[0].peak_bytes(6) + seen[0].peak_bytes(7)) / 2 + estimated_off
    capacity = round(target / 0.7)
    guess = max((size for size in range(1, 31) if seen[0].peak_bytes(size) <= target), default=1)

    def probe(factor: float | None) -> ProbeResult:
        def scaled(occasion: Occasion) -> Forecast:
            assert factor is not None
            return Scaled(seen[0], factor)

        request = ProbeRequest(str(run), capacity_bytes=capacity, force=True)
        return run_probe(request, forecaster=None if factor is None else scaled)

    without = probe(None)
    seeded = probe(1.0)

    assert without.prediction is None
    assert without.status is Status.DONE
    assert (seeded.batch_size, seeded.limit) == (without.batch_size, without.limit)
    assert next(trial.batch_size for trial in seeded.trials) == guess
    assert len(seeded.trials) <= 4
    on_file = load_result(run / "probe" / "result.json").prediction
    assert on_file is not None
    assert on_file == seeded.prediction
    assert on_file.peak_batch_size == seeded.batch_size
    assert on_file.peak_bytes == pytest.approx(seeded.peak_bytes, rel=0.03)
    for factor in (0.25, 4.0):
        assert probe(factor).batch_size == without.batch_size


@pytest.mark.recipe
def test_a_forecaster_that_fails_costs_nothing_but_the_hint(make_run: MakeRun) -> None:
    def failing(occasion: Occasion) -> Forecast:
        raise ZeroDivisionError("a bug")

    result = run_probe(
        ProbeRequest(str(make_run()), max_batch_size=1, target_fraction=1.0), forecaster=failing
    )

    assert result.batch_size == 1
    assert result.prediction is not None
    assert result.prediction.why == "no estimate: ZeroDivisionError: a bug"
