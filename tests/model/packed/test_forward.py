"""The door to log-probs: what it returns, which back-end it takes, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from srpo.errors import BackendError, DataError
from srpo.maths.objective import SixLogps
from srpo.model.packed import backends, layouts
from srpo.model.packed.attention import NAME, following_paths, serving
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps, six_logps
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import REFUSED, SERVED, TINY, build, forest_of, plain_logps, random_six


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "srpo"]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "srpo" and r.levelno >= logging.WARNING]


def attention(model: nn.Module) -> set[str]:
    return {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# ---------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("backend", ["path", "flat", "auto"])
def test_six_logps_has_named_fields(backend: str) -> None:
    model, trees = build("llama"), forest_of()
    six = six_logps(model, trees, backend)
    plain = plain_logps(model, trees)
    assert isinstance(six, SixLogps)
    # The order of `random_six`: drafts w and l, then w and l after w, then w and l after l.
    for k, field in enumerate(("w", "l", "w_given_w", "l_given_w", "w_given_l", "l_given_l")):
        logps = getattr(six, field)
        assert logps.dtype == torch.float64
        assert logps.requires_grad
        torch.testing.assert_close(logps, plain[:, k], rtol=0, atol=1e-4)
    assert len({round(logps[0].item(), 3) for logps in six}) == 6  # else the order could not be told


@pytest.mark.parametrize("backend", ["path", "flat"])
def test_unscored_fields_are_nan(backend: str) -> None:
    model = build("llama")
    six = six_logps(model, [PrefixTree.pack(random_six(seed)[:2]) for seed in range(2)], backend)
    whole = six_logps(model, [PrefixTree.pack(random_six(seed)) for seed in range(2)], backend)
    for field, logps in six._asdict().items():
        if field in ("w", "l"):
            torch.testing.assert_close(logps, getattr(whole, field), rtol=0, atol=1e-4)
        else:
            assert logps.shape == (2,)
            assert logps.isnan().all()
    assert six.w_given_l.sum().isnan()


def test_one_token_answers() -> None:
    model = build("llama")
    trees = [PrefixTree.pack([([5], [6]), ([5], [7]), ([5, 6], [6]), ([5, 6], [7]), ([5, 7], [6]), ([5, 7], [7])])]
    for backend in ("path", "flat"):
        torch.testing.assert_close(sequence_logps(model, trees, backend), plain_logps(model, trees), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["path", "flat", "auto"])
@pytest.mark.parametrize("hole", [([], [5]), ([5], [])])
def test_answers_that_cannot_be_scored(hole: tuple[list[int], list[int]], backend: str) -> None:
    with pytest.raises(DataError):
        six_logps(build("llama"), [PrefixTree.pack([*random_six(0)[:5], hole])], backend)


@pytest.mark.parametrize("backend", ["path", "flat"])
def test_bfloat16_is_summed_in_float64(backend: str) -> None:
    model, trees = build("llama").bfloat16(), forest_of()
    logps = sequence_logps(model, trees, backend)
    assert logps.dtype == torch.float64
    assert (logps - plain_logps(model, trees)).abs().max() < 0.3
    assert not torch.equal(logps, logps.bfloat16().double())


@pytest.mark.parametrize("backend", ["path", "flat"])
def test_inside_wrappers(backend: str) -> None:
    class Wrapped(nn.Module):
        """Holds a model the way DistributedDataParallel does."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    model, trees = build("llama"), forest_of()
    assert torch.equal(sequence_logps(Wrapped(model), trees, backend), sequence_logps(model, trees, backend))


@pytest.mark.parametrize("backend", ["path", "flat"])
def test_compiled(backend: str) -> None:
    # Traced by torch.compile, then run as it was traced: no compiler, whose kernels take half a minute to make.
    torch._dynamo.reset()
    model = build("llama", num_hidden_layers=1)  # each layer is traced, for half a second
    compiled: Any = torch.compile(model, backend="eager")
    for seed in (0, 10):  # the second forest has other shapes, and is traced with sizes left open
        trees = [PrefixTree.pack(random_six(seed + n, prompt=9 + seed + n, w=4 + n, l=6 - n)) for n in range(3)]
        both = [sequence_logps(each, trees, backend) for each in (model, compiled)]
        assert (both[1] - both[0]).abs().max() < 1e-5
        weights = torch.linspace(-1, 1, 6)
        for logps in both:
            (weights * logps).sum().backward()
            if logps is both[0]:
                expected = gradient(model)
                model.zero_grad()
        assert (gradient(model) - expected).norm() < 1e-5 * expected.norm()
        model.zero_grad()


def test_compiled_where_all_logits_are_kept() -> None:
    torch._dynamo.reset()
    model, trees = llama_like(KeepsAllLogits, num_hidden_layers=1), forest_of()
    assert (
        sequence_logps(torch.compile(model, backend="eager"), trees, "flat") - plain_logps(model, trees)
    ).abs().max() < 1e-4


# ---------------------------------------------------------------------- which back-end


def test_auto_takes_path_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "srpo")
    model, trees = build("llama"), forest_of()
    assert settle_backend(model, trees) == "path"
    for _ in range(2):
        assert torch.equal(six_logps(model, trees, "auto").w, six_logps(model, trees, "path").w)
    assert len(said(caplog)) == 1
    assert "backend path: packed log-probs within" in said(caplog)[0]


def test_auto_prefers_flex_where_it_is_the_faster_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setitem(backends.PREFERRED, "cpu", backends.PREFERRED["cuda"])
    caplog.set_level(logging.INFO, "srpo")
    trees = forest_of()
    with torch.no_grad():
        assert settle_backend(build("llama"), trees) == "flex"
    assert "backend flex: packed log-probs within" in said(caplog)[0]
    assert settle_backend(build("llama"), trees) == "path"  # with gradients, which it does not have on a CPU
    why = "FlexAttention cannot serve this model: it has no backward pass on a CPU"
    assert warned(caplog) == [f"srpo: backend path: {why}"]


def test_auto_goes_on_with_path_where_flex_does_not_compile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: Any, forest: Any, kind: Any = RuntimeError) -> Any:
        raise kind("no Triton")

    monkeypatch.setitem(backends.PREFERRED, "cpu", backends.PREFERRED["cuda"])
    monkeypatch.setitem(backends.LAYOUTS, "flex", fails)
    with torch.no_grad():
        assert settle_backend(build("llama"), forest_of()) == "path"
        assert len(warned(caplog)) == 1
        assert warned(caplog)[0].startswith("srpo: backend path: FlexAttention cannot serve this model: its kernels do")
        with pytest.raises(BackendError, match="its kernels do not compile: RuntimeError: no Triton"):
            settle_backend(build("llama"), forest_of(), "flex")
        # Control: memory that runs out is not a kernel that does not compile.
        monkeypatch.setitem(
            backends.LAYOUTS, "flex", lambda model, forest: (_ for _ in ()).throw(torch.OutOfMemoryError)
        )
        with pytest.raises(torch.OutOfMemoryError):
            settle_backend(build("llama"), forest_of())


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_path_attention_refuses(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model_type, settings, why = REFUSED[name]
    model, trees = build(model_type, **settings), forest_of()
    with torch.no_grad():
        plain = plain_logps(model, trees)
        for _ in range(2):
            assert (sequence_logps(model, trees) - plain).abs().max() < 1e-4
    assert len(warned(caplog)) == 1
    assert warned(caplog)[0].startswith(f"srpo: backend flat: path attention cannot serve this model: {why}")
    with pytest.raises(BackendError, match=f"path attention cannot serve this model: {why}") as error:
        six_logps(model, trees, "path")
    assert error.value.exit_code == 78
    assert "--backend flat" in error.value.fix
    assert NAME not in attention(model)


@pytest.mark.parametrize("backend", ["flash", "Path", ""])
def test_unknown_back_ends(backend: str) -> None:
    with pytest.raises(BackendError, match=f"no back-end '{backend}'; expected one of auto, path, flex, cache, flat"):
        six_logps(build("llama"), forest_of(), backend)


class ForgetsThePlan(LlamaForCausalLM):
    """Swallows the plan on its way to the layers."""

    def forward(self, *args: Any, srpo_forest: Forest | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class LeansWhenPacked(LlamaForCausalLM):
    """Likes one token a little better when it sees a tree: right in every shape, wrong in its numbers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if "srpo_forest" in kwargs:
            out.logits[..., 5] += 0.3
        return out


class ForgetsPositions(LlamaForCausalLM):
    """Counts packed tokens instead of depths."""

    def forward(self, *args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class NanWhenPacked(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if "srpo_forest" in kwargs:
            out.logits[..., 5] *= float("nan")
        return out


class KeepsAllLogits(LlamaForCausalLM):
    """Heeds no `logits_to_keep`."""

    def forward(self, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def llama_like(kind: type[LlamaForCausalLM], **settings: Any) -> Any:
    model = kind(LlamaConfig(**{**TINY, **settings})).eval()
    model.load_state_dict(build("llama", **settings).state_dict())
    return model


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (ForgetsThePlan, "did not pass the plan to its attention layers"),
        (LeansWhenPacked, r"packed log-probs differ from flat ones by [\d.]+ nats"),
        (ForgetsPositions, r"packed log-probs differ from flat ones by [\d.]+ nats"),
        (NanWhenPacked, "packed log-probs differ from flat ones by nan nats"),
    ],
)
def test_the_self_check_catches_a_wrong_packed_path(
    kind: type[LlamaForCausalLM], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, trees = llama_like(kind), forest_of()
    with pytest.raises(BackendError, match=why):
        six_logps(model, trees, "path")
    caplog.clear()
    with torch.no_grad():
        assert (sequence_logps(model, trees) - plain_logps(model, trees)).abs().max() < 1e-4
    assert len(warned(caplog)) == 1
    assert "backend flat" in warned(caplog)[0]
    assert attention(model) == {"sdpa"}


class RoundsWhenPacked(LlamaForCausalLM):
    """Rounds coarsely in bfloat16, as a family with large activations does, and not in float32."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if "srpo_forest" in kwargs and out.logits.dtype == torch.bfloat16:
            out.logits *= 1.25
        return out


def test_rounding_in_bfloat16_is_told_from_a_wrong_path_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "srpo")
    model, trees = llama_like(RoundsWhenPacked).bfloat16(), forest_of()
    off, allowed = backends.self_check(model, trees)
    assert off > allowed
    assert settle_backend(model, trees) == "path"
    assert "are rounding of 16 bits; in float32" in caplog.text
    assert model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert settle_backend(llama_like(RoundsWhenPacked), trees) == "path"
    # Control: a wrong packed path is wrong in float32 as well.
    assert settle_backend(llama_like(ForgetsPositions).bfloat16(), trees) == "flat"
    with torch.autocast("cpu", torch.bfloat16):
        assert settle_backend(llama_like(ForgetsPositions), trees) == "flat"


def test_control_fakes_without_a_fault_are_served() -> None:
    model = llama_like(LlamaForCausalLM)
    assert settle_backend(model, forest_of(), "path") == "path"


def test_a_model_without_logits_to_keep_is_served() -> None:
    model, trees = llama_like(KeepsAllLogits), forest_of()
    for backend in ("auto", "flat", "path"):
        assert (sequence_logps(model, trees, backend) - plain_logps(model, trees)).abs().max() < 1e-4


def test_the_self_check_draws_no_dropout_and_keeps_every_mode() -> None:
    model = build("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    off, allowed = backends.self_check(model, forest_of())
    assert off < allowed
    assert [module.training for module in model.modules()] == modes


def test_the_self_check_scores_the_longest_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[PrefixTree]] = []
    flat = backends.flat_logps
    monkeypatch.setattr(
        backends, "flat_logps", lambda model, forest: (seen.append(forest.trees), flat(model, forest))[1]
    )
    trees = [PrefixTree.pack(random_six(seed, prompt=3 + seed)) for seed in range(7)]
    backends.self_check(build("llama"), trees)
    assert [len(tree) for (tree,) in seen] == sorted(map(len, trees))[-backends.CHECKED_TREES :]


def test_prompt_tuning_is_refused() -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    tuned = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for backend in ("auto", "flat", "path"):
        with pytest.raises(BackendError, match="PROMPT_TUNING"):
            six_logps(tuned, forest_of(), backend)
    # Prefix tuning prepends keys and values, not positions: the logits stay where they were.
    prefixed = get_peft_model(build("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with torch.no_grad():
        assert (sequence_logps(prefixed, forest_of()) - plain_logps(prefixed, forest_of())).abs().max() < 1e-4


# ---------------------------------------------------------------------- no trace


def test_the_model_s_attention_is_put_back() -> None:
    for implementation in ("sdpa", "eager"):
        model = build("llama")
        model.set_attn_implementation(implementation)
        six_logps(model, forest_of(), "path")
        assert attention(model) == {implementation}
        with pytest.raises(BackendError), following_paths(model):
            model(input_ids=torch.tensor([[3, 4, 5]]))
        assert attention(model) == {implementation}


def test_generate_works_as_before() -> None:
    model = build("llama")
    ids = torch.tensor([random_six(0)[0][0]])
    sampled = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **sampled)
    six_logps(model, forest_of(), "path").w.sum().backward()
    assert torch.equal(model.generate(ids, **sampled), before)


def test_path_attention_outside_a_forest_is_refused() -> None:
    model = build("llama")
    with following_paths(model), pytest.raises(BackendError, match="did not pass the plan"):
        model(input_ids=torch.tensor([[3, 4, 5]]))


# ---------------------------------------------------------------------- activation checkpointing


@pytest.fixture(params=[True, False], ids=["reentrant", "not reentrant"])
def checkpointing(request: Any) -> Any:
    """A model in training with activation checkpointing, and its gradient without."""
    model = build("llama").train()
    sequence_logps(model, forest_of(), "path").sum().backward()
    expected = gradient(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": request.param})
    return model, expected, request.param


def test_activation_checkpointing_outside_serving_is_refused(checkpointing: Any) -> None:
    model, _, _ = checkpointing
    with pytest.raises(BackendError, match=r"serving\(model, 'path'\)"):
        six_logps(model, forest_of(), "path")
    with torch.no_grad():  # nothing is recomputed
        six_logps(model, forest_of(), "path")
    six_logps(model.eval(), forest_of(), "path")
    six_logps(model.train(), forest_of(), "flat").w.sum().backward()


def test_checkpointing_inside_serving_is_exact(checkpointing: Any) -> None:
    model, expected, _ = checkpointing
    for backend in ("path", "flat"):
        model.zero_grad()
        with serving(model, backend):
            assert attention(model) == {NAME if backend == "path" else "sdpa"}
            sequence_logps(model, forest_of(), backend).sum().backward()
        assert (gradient(model) - expected).norm() < 1e-5 * expected.norm()
        assert attention(model) == {"sdpa"}
    with pytest.raises(BackendError):  # held no longer
        six_logps(model, forest_of(), "path")


def test_control_without_the_guard_the_gradient_is_wrong(checkpointing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected, reentrant = checkpointing
    monkeypatch.setattr(layouts, "attending", lambda model, backend: following_paths(model))
    logps = sequence_logps(model, forest_of(), "path")
    if reentrant:
        logps.sum().backward()  # without a word
        assert (gradient(model) - expected).norm() > 0.1 * expected.norm()
    else:
        with pytest.raises(RuntimeError):
            logps.sum().backward()


# ---------------------------------------------------------------------- strided inputs


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("backend", ["path", "flat"])
def test_every_linear_layer_gets_contiguous_rows(name: str, backend: str) -> None:
    """For a frozen bfloat16 weight and strided rows, torch's CPU linear is hundreds of times slower, and multiplies by
    another kernel than for a trainable weight."""
    model_type, settings = SERVED[name]
    model = build(model_type, **settings).bfloat16().requires_grad_(False)
    strided: list[str] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], where: str) -> None:
        if not args[0].is_contiguous():
            strided.append(where)

    for where, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(partial(look, where=where))
    with torch.no_grad():
        sequence_logps(model, forest_of(), backend)
    assert not strided
    # Control: a slice of the hidden states, as `logits_to_keep` makes it, is strided.
    model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]]), logits_to_keep=1)
    assert strided == ["lm_head"]
