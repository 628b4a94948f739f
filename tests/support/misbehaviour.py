"""Files as a researcher may bring them, each with one misbehaviour: of an attack, an objective, a rule, a Flower strategy, a model, a data
set, a partition and a tracker.

A case says what must come of the run: `error` (one error that names the file and the line), `same` (the numbers of the run with the
well-behaved file), `runs` (complete), `interrupt` (KeyboardInterrupt).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

HEAD = "import asyncio, logging, os, random, signal, subprocess, sys, threading, time, warnings\nimport numpy as np\nimport torch\n"


SMALL: Mapping[str, Any] = {
    "data.num-clients": 6,
    "model.name": "mlp",
    "client.block": 3,
    "client.batch-size": 4,
    "attack.malicious-fraction": 0.34,
    "attack.set-size": 10,
    "attack.fire": "schedule",
    "strategy.name": "mean",
    "strategy.probe-size": 5,
    "schedule.burn-in-epochs": 1,
    "schedule.accumulate-rounds": 2,
    "schedule.recovery-rounds": 1,
    "twin": False,
    "control": False,
    "checkpoint.every": 1,
}


class Kind(NamedTuple):
    """The key that names a kind of file; its source with the places `{top}` (at import), `{call}` (in a call, when what it returns is
    ready) and `{result}`; the result of the well-behaved file; and the calls in which it may raise (empty: it is called once)."""

    key: str
    source: str
    result: str
    calls: tuple[int, ...]
    places: tuple[str, ...] = ("top", "call")


KINDS: Mapping[str, Kind] = {
    "attack": Kind(
        "attack.name",
        HEAD + "import fl_sim\nCALLS = 0\nKEPT = []\n{top}\ndef thing(knowledge, state):\n    global CALLS\n    CALLS += 1\n"
        "    updates = -2.0 * knowledge.updates\n    ours = fl_sim.AttackState({'a': torch.ones(3)}, {'n': 1.0})\n{call}\n    return {result}\n",
        "fl_sim.Action(updates, ours, {'mine': 1.0})",
        (1, 2),
    ),
    "objective": Kind(
        "attack.objective",
        HEAD + "import fl_sim\nCALLS = 0\nKEPT = []\n{top}\ndef thing(knowledge, theta, trigger):\n    global CALLS\n    CALLS += 1\n"
        "    value = (theta * theta).sum()\n{call}\n    return {result}\n",
        "fl_sim.Aim(value)",
        (1, 2),
    ),
    "rule": Kind(
        "strategy.name",
        HEAD + "CALLS = 0\nKEPT = []\n{top}\ndef thing(updates, weights, clients, state):\n    global CALLS\n    CALLS += 1\n"
        "    combined = (weights @ updates) / weights.sum()\n    state['n'] = torch.ones(1)\n{call}\n    return {result}\n",
        "combined",
        (1, 2),
    ),
    "strategy": Kind(
        "strategy.name",
        HEAD + "from flwr.serverapp.strategy import FedAvg\nCALLS = 0\nKEPT = []\n{top}\nclass thing(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n        global CALLS\n        CALLS += 1\n        replies = list(replies)\n"
        "        arrays, metrics = super().aggregate_train(server_round, replies)\n    {call}\n        return {result}\n",
        "arrays, metrics",
        (1, 2),
    ),
    "sender": Kind(
        "strategy.name",
        HEAD + "from flwr.serverapp.strategy import FedAvg\nCALLS = 0\nKEPT = []\n{top}\nclass thing(FedAvg):\n"
        "    def configure_train(self, server_round, arrays, config, grid):\n        global CALLS\n        CALLS += 1\n"
        "        messages = list(super().configure_train(server_round, arrays, config, grid))\n    {call}\n        return {result}\n",
        "messages",
        (1, 2),
        ("call",),
    ),
    "model": Kind(
        "model.name",
        HEAD + "from torch import nn\nCALLS = 0\nKEPT = []\n{top}\ndef thing(image_shape, num_classes):\n"
        "    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), num_classes))\n{call}\n    return {result}\n",
        "module",
        (),
    ),
    "forward": Kind(
        "model.name",
        HEAD
        + "from torch import nn\nCALLS = 0\nKEPT = []\n{top}\nclass thing(nn.Module):\n    def __init__(self, image_shape, num_classes):\n"
        "        super().__init__()\n        self.layer = nn.Linear(int(np.prod(image_shape)), num_classes)\n"
        "    def forward(self, images):\n        global CALLS\n        CALLS += 1\n        logits = self.layer(images.flatten(1))\n    {call}\n"
        "        return {result}\n",
        "logits",
        (2, 12, 40),
        ("call",),
    ),
    "data": Kind(
        "data.name",
        HEAD + "CALLS = 0\nKEPT = []\n{top}\ndef thing(root):\n    x = torch.rand(90, 4)\n    y = torch.arange(90) % 3\n"
        "    train = torch.utils.data.TensorDataset(x[:60], y[:60])\n    test = torch.utils.data.TensorDataset(x[60:], y[60:])\n"
        "{call}\n    return {result}\n",
        "train, test",
        (),
    ),
    "example": Kind(
        "data.name",
        HEAD + "CALLS = 0\nKEPT = []\n{top}\nclass Part:\n    def __init__(self, size):\n        self.size = size\n"
        "    def __len__(self):\n        return self.size\n    def __getitem__(self, row):\n        global CALLS\n        CALLS += 1\n"
        "        x, y = torch.full((4,), float(row)), row % 3\n    {call}\n        return {result}\n"
        "def thing(root):\n    return Part(60), Part(30)\n",
        "x, y",
        (1, 70),
        ("call",),
    ),
    "partition": Kind(
        "data.partition",
        HEAD + "CALLS = 0\nKEPT = []\n{top}\ndef thing(labels, num_clients, generator):\n"
        "    shares = np.array_split(generator.permutation(len(labels)), num_clients)\n{call}\n    return {result}\n",
        "shares",
        (),
    ),
    "tracker": Kind(
        "tracking",
        HEAD + "CALLS = 0\nKEPT = []\n{top}\nclass thing:\n    def __init__(self, folder, config):\n        self.config = config\n"
        "    def on_round(self, line):\n        global CALLS\n        CALLS += 1\n    {call}\n        return {result}\n"
        "    def close(self, summary):\n        summary.clear()\n",
        "None",
        (1, 2),
    ),
}

RAISES = (
    "raise ValueError('boom')",
    "raise KeyError('key')",
    "raise ValueError",
    "raise ValueError('two\\nlines')",
    "raise SystemExit(3)",
    "sys.exit()",
    "os._exit(3)",
    "os.abort()",
    "raise GeneratorExit",
    "raise StopIteration",
    "raise RuntimeError('[red]markup[/] [/nothing]')",
    "raise MemoryError",
    "raise BaseException('base')",
    "raise asyncio.CancelledError",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
    "raise ExceptionGroup('several', [ValueError(1), KeyError(2)])",
    "raise TimeoutError",
    "raise OSError(28, 'No space left on device')",
    "raise ImportError('late')",
    "raise NotImplementedError",
    "assert False, 'never'",
    "1 / 0",
    "undefined_name",
    "(again := lambda: again())()",
    "import nothing_of_the_kind",
    "open('/nothing/of/the/kind')",
    "torch.zeros(2) @ torch.zeros(3)",
    "np.zeros(2) @ np.zeros(3)",
    "[][1]",
    "None.x",
    "raise RuntimeError('x' * 100000)",
)
STATE = (
    "torch.manual_seed(0)",
    "np.random.seed(0); random.seed(0)",
    "torch.rand(5); np.random.rand(3); random.random()",
    "torch.set_num_threads(2)",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)",
    "torch.use_deterministic_algorithms(True)",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_flush_denormal(True)",
    "torch.autocast('cpu').__enter__()",
    "torch.backends.mkldnn.set_flags(False)",
    "np.seterr(all='raise')",
    "os.chdir('/')",
    "warnings.simplefilter('error')",
    "logging.disable(50)",
    "sys.setrecursionlimit(20000)",
    "sys.stdout = None",
    "sys.stdout.close()",
    "print('x' * 1000000)",
    "print('x\\n' * 100000)",
    "[print('.', end='') for _ in range(20000)]",
    "sys.stderr = open(os.devnull, 'w')",
    "threading.Thread(target=time.sleep, args=(0.2,)).start()",
    "subprocess.run(['true'], check=True)",
    "os.fork() or os._exit(0)",
    "os.fork()",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "time.sleep(0.05)",
    "KEPT.append(dict(locals()))",
    "import gc; gc.disable(); gc.enable()",
)
# (kind, code in the call, result in place of the kind's own, what must come of it)
OTHERS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "attack": (
        *(("", result, "error") for result in (
            "None", "updates", "(updates, ours)", "[1]", "{}", "fl_sim.Action", "fl_sim.Action(None)", "fl_sim.Action(updates[:-1])",
            "fl_sim.Action(updates[:, :-1])", "fl_sim.Action(updates.T)", "fl_sim.Action(updates[0])", "fl_sim.Action(updates.unsqueeze(0))",
            "fl_sim.Action(torch.cat([updates, updates]))", "fl_sim.Action(updates.numpy())", "fl_sim.Action(updates.tolist())",
            "fl_sim.Action(updates.to('meta'))", "fl_sim.Action(updates.to_sparse())", "fl_sim.Action(updates.to(torch.complex64))",
            "fl_sim.Action(updates, None)", "fl_sim.Action(updates, {})", "fl_sim.Action(updates, fl_sim.AttackState({'a': 1.0}))",
            "fl_sim.Action(updates, fl_sim.AttackState({1: torch.ones(1)}))", "fl_sim.Action(updates, fl_sim.AttackState({}, {'a': 'b'}))",
            "fl_sim.Action(updates, fl_sim.AttackState({'a': torch.ones(1, device='meta')}))", "fl_sim.Action(updates, metrics=None)",
            "fl_sim.Action(updates, metrics={'a': 'b'})", "fl_sim.Action(updates, metrics={1: 2.0})", "fl_sim.Action(updates, metrics=[1])",
            "fl_sim.Action(updates, metrics={'fired': float('nan')})", "fl_sim.Action(updates, metrics={'shift_norm': 1.0})",
            "fl_sim.Action(updates, metrics={'a': torch.ones(2)})", "fl_sim.Action(updates, reason=None)", "(yield)", "1.0", "'text'",
        )),
        *(("", result, "same") for result in (
            "fl_sim.Action(updates.double(), ours, {'mine': 1.0})", "fl_sim.Action(updates.clone().requires_grad_(), ours, {'mine': 1.0})",
            "fl_sim.Action(updates, ours, {'mine': torch.tensor(1.0)})", "fl_sim.Action(updates, ours, {'mine': np.float64(1)})",
            "fl_sim.Action(updates, ours, {'mine': True})", "fl_sim.Action(updates.T.clone().T, ours, {'mine': 1.0})",
            "fl_sim.Action(torch.nn.Parameter(updates), ours, {'mine': 1.0})",
        )),
        *(("", result, "runs") for result in (
            "fl_sim.Action(updates.int())", "fl_sim.Action(updates.bool())", "fl_sim.Action(updates * float('nan'))", "fl_sim.Action(updates / 0)",
            "fl_sim.Action(torch.full_like(updates, 1e30))", "fl_sim.Action(updates.double() * 1e300)", "fl_sim.Action(updates[:1].expand_as(updates))",
            "fl_sim.Action(updates, metrics={'mine': float('inf')})", "fl_sim.Action(updates, metrics={'fired': 1.0})",
            "fl_sim.Action(updates, metrics={'fired': 0.0})", "fl_sim.Action(updates, metrics={'mine': float('nan')})",
            "fl_sim.Action(knowledge.updates.mul_(1e6))", "fl_sim.Action(updates.half())",
        )),
        *((code, "", "same") for code in (
            "    knowledge.updates.zero_()", "    knowledge.theta.fill_(7.0)", "    knowledge.weights.zero_()", "    knowledge.batches.inputs.zero_()",
            "    knowledge.batches.labels.zero_()", "    knowledge.seen.total.fill_(9.0)", "    knowledge.validation.inputs.zero_()",
            "    knowledge.trigger_batch.labels.zero_()", "    state.arrays.clear()", "    state.scalars['x'] = 'text'",
            "    [p.data.zero_() for p in knowledge.model.module.parameters()]", "    knowledge.model.module.train()",
            "    KEPT.append(knowledge); KEPT[0].theta.add_(1.0); KEPT[0].updates.add_(1.0)",
            "    KEPT.append(ours); KEPT[0].arrays['a'].fill_(float('nan')) if CALLS > 1 else None",
            "    KEPT.append(updates); KEPT[0].fill_(float('nan')) if CALLS > 1 else None",
        )),
    ),
    "objective": (
        *(("", result, "error") for result in (
            "None", "value", "(value, None)", "fl_sim.Aim(None)", "fl_sim.Aim(1.0)", "fl_sim.Aim(theta)", "fl_sim.Aim(value.detach())",
            "fl_sim.Aim(torch.ones((), requires_grad=True))", "fl_sim.Aim(value, 'high')", "fl_sim.Aim(value.to(torch.complex64))", "(yield)", "[value]",
        )),
        *(("", result, "same") for result in ("fl_sim.Aim(value.reshape(1, 1))", "fl_sim.Aim(value.double())")),
        *(("", result, "runs") for result in ("fl_sim.Aim(value * float('nan'))", "fl_sim.Aim(0.0 * value)", "fl_sim.Aim(value * 1e30)", "fl_sim.Aim(value, 3)")),
        ("    theta.data.zero_()", "", "runs"),
        ("    trigger.zero_()", "", "same"),
        ("    knowledge.theta.zero_()", "", "runs"),
    ),
    "rule": (
        *(("", result, "error") for result in (
            "None", "updates", "combined[:-1]", "combined.unsqueeze(0)", "combined.numpy()", "combined.tolist()", "combined * float('nan')", "combined / 0",
            "combined.to('meta')", "combined.to_sparse()", "combined.to(torch.complex64)", "combined.double() * 1e300", "(combined, {})", "1.0", "(yield)",
            "torch.zeros(0)", "weights",
        )),
        *(("", result, "same") for result in ("combined.double()", "combined.clone().requires_grad_()", "torch.nn.Parameter(combined)")),
        *(("", result, "runs") for result in ("combined.int()", "combined.half()", "combined.bool()", "updates[0]")),
        *((code, "", "same") for code in (
            "    updates.zero_()", "    weights.zero_()", "    clients.zero_()", "    KEPT.append(updates); KEPT[0].fill_(9.0)",
            "    KEPT.append(combined); KEPT[0].fill_(float('nan')) if CALLS > 1 else None",
        )),
        ("    state['x'] = 'text'", "", "error"),
        ("    state['x'] = None", "", "error"),
    ),
    "strategy": (
        *(("", result, "error") for result in (
            "arrays", "None", "(metrics, arrays)", "(arrays,)", "(arrays, metrics, 1)", "({}, metrics)", "(1, 2)", "(arrays, {'a': 1})",
            "(type(arrays)(), metrics)", "(yield)",
            "(type(arrays)({k: type(v)(v.numpy() * float('nan')) for k, v in arrays.items()}), metrics)",
            "(type(arrays)({k: type(v)(v.numpy().T[:1].copy()) for k, v in arrays.items()}), metrics)",
        )),
        *(("", result, "same") for result in ("arrays, None", "[arrays, metrics][0], metrics")),
        ("        [reply.content.clear() for reply in replies]", "", "same"),
    ),
    "sender": (
        *(("", result, "error") for result in ("None", "messages[0]", "[1, 2]", "'text'", "messages + messages", "{}.x", "(1 / 0 for _ in range(3))")),
        *(("", result, "same") for result in ("messages", "tuple(messages)", "(message for message in messages)", "messages[::-1]")),
        ("", "messages[:3]", "runs"),
    ),
    "model": (
        *(("", result, "error") for result in (
            "None", "1.0", "thing", "module.double()", "module.half()", "nn.Flatten()", "nn.Linear(7, 3)", "module.to('meta')", "[module]",
            "nn.Sequential(module, nn.Linear(10, 7))", "nn.Sequential(module, nn.Dropout(0.0), nn.Softmax(1), nn.Flatten(0))", "module.requires_grad_(False)",
            "(yield)",
        )),
        *(("", result, "same") for result in ("module.eval()", "module.train()", "module.float()")),
    ),
    "forward": (
        *(("", result, "error") for result in (
            "None", "logits.double()", "logits[:, :-1]", "logits[0]", "logits.sum()", "logits.detach().numpy()", "(logits, logits)", "logits.tolist()",
            "logits * float('nan')", "logits / 0", "logits.to('meta')", "logits + torch.rand(1)", "logits + CALLS", "logits.half()",
        )),
        ("        images.zero_()", "", "error"),  # PyTorch cannot train it
        ("", "self.layer(images.mul_(2.0).flatten(1))", "runs"),
    ),
    "data": (
        *(("", result, "error") for result in (
            "None", "train", "(train,)", "(train, test, test)", "(1, 2)", "'ab'", "(x, y)", "([], [])", "(train, [])", "{'train': train}", "(yield)",
            "(train, test.tensors[0])", "(zip(x, y), test)", "([(x[0], 1.5)], test)", "([(x[0], -1)], test)", "([(x[0], 'cat')], test)",
            "([(x[0], True)], test)", "([(x[0],)], test)", "([(x[0] / 0, 1)], test)", "([(x[0].to('meta'), 1)], test)", "([(x[0].to_sparse(), 1)], test)",
            "([(x[0].int(), 1)], test)", "([(x[0].numpy(), 1)], test)", "([(x[0], 10**9)], test)", "([(x[0], 1), (x[0][:2], 1)], test)",
            "([(x[0].to(torch.complex64), 1)], test)", "([(x[0].double() * 1e300, 1)], test)", "(train, [(x[0][:3], 1)])",
        )),
        *(("", result, "same") for result in ("[train, test]", "(list(train), list(test))")),
        ("    KEPT.append(train)", "", "same"),
    ),
    "example": (
        *(("", result, "error") for result in ("None", "x", "(x, y, y)", "(x, None)", "(None, y)", "(x[:CALLS], y)", "(x, float(y))", "(x * float('nan'), y)")),
        *(("", result, "same") for result in ("[x, y]", "(x.double(), y)", "(x, torch.tensor(y))", "(x, np.int64(y))", "(x.requires_grad_(), y)")),
        ("        if CALLS == 70: raise IndexError(row)", "", "error"),
    ),
    "partition": (
        *(("", result, "error") for result in (
            "None", "shares[:-1]", "shares + shares[:1]", "shares[:-1] + [[]]", "shares[:-1] + [shares[0]]", "shares[:-1] + [np.array([10**6])]",
            "shares[:-1] + [np.array([-1])]", "shares[:-1] + [np.array([0.5])]", "shares[:-1] + [None]", "shares[:-1] + ['ab']", "'text'", "(yield)",
            "shares[:-1] + [shares[-1][None]]", "{}", "shares[:-1] + [torch.zeros(2, device='meta')]", "1", "shares[:-1] + [np.array([True])]",
            "shares[:-1] + [np.r_[shares[-1], shares[-1][:1]]]",
        )),
        *(("", result, "same") for result in ("tuple(shares)", "[share.tolist() for share in shares]", "[torch.tensor(share) for share in shares]",
                                              "[share.astype(np.uint16) for share in shares]")),
        ("    labels[:] = 0", "", "same"),
        ("    KEPT.append(shares)", "", "same"),
    ),
    "tracker": (
        *((code, "", "same") for code in (
            "        line.clear()", "        line['strategy']['combined_norm'] = 7.0", "        line['round'] = -1", "        self.config.clear()",
            "        line['accuracy'] = 0.0",
        )),
    ),
}  # fmt: skip
SWALLOWS = """
def swallow():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except BaseException:
        pass
"""
TOPS = (
    "def thing(:",
    "    x = 1",
    "del thing",
    "raise SystemExit",
    "thing = None",
    "sys.exit(0)",
    "x = '",
    "\0",
    "from . import me",
    "import fl_sim.nothing",
)


class Case(NamedTuple):
    """One file: its kind, its source, and what must come of a run with it."""

    name: str
    kind: str
    source: str
    outcome: str


def well_behaved(kind: str) -> str:
    """The source of a file that does what it should."""
    return _source(kind, top="", call="", result="")


def _source(kind: str, *, top: str, call: str, result: str) -> str:
    of = KINDS[kind]
    return of.source.replace("{top}", top).replace("{call}", call or "    pass").replace("{result}", result or of.result)


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, of in KINDS.items():
        for number, code in enumerate(RAISES):
            if "top" in of.places:
                yield Case(f"{kind}-import-raises-{number}", kind, _source(kind, top=code, call="", result=""), "error")
            for at in of.calls or (1,):
                late = "same" if kind == "tracker" else "runs" if at == 40 else "error"  # 40: the worker's block is computed again
                condition = f"    if CALLS == {at}: " if of.calls else "    "
                yield Case(f"{kind}-call-{at}-raises-{number}", kind, _source(kind, top="", call=condition + code, result=""), late)
        for number, code in enumerate(STATE):
            once = "if CALLS < 3: " if kind == "example" else ""
            for place in of.places:
                calm = _source(kind, top=code if place == "top" else "", call=f"    {once}{code}" if place == "call" else "", result="")
                yield Case(f"{kind}-{place}-state-{number}", kind, calm, _outcome_of_state(kind, place, code))
        for number, (code, result, outcome) in enumerate(OTHERS[kind]):
            yield Case(
                f"{kind}-other-{number}",
                kind,
                _source(kind, top="", call=code.removeprefix("    ") if kind in NESTED else code, result=result),
                outcome,
            )
        if "top" in of.places:
            for number, code in enumerate(TOPS):
                yield Case(f"{kind}-top-{number}", kind, _top(kind, code), "error")
            yield Case(f"{kind}-interrupt", kind, _source(kind, top="", call="    raise KeyboardInterrupt", result=""), "interrupt")
            yield Case(f"{kind}-swallows", kind, _source(kind, top=SWALLOWS, call="    swallow()", result=""), "interrupt")


NESTED = ("strategy", "sender", "forward", "example", "tracker")  # `{call}` stands in a method


def _top(kind: str, code: str) -> str:
    """A file that is broken as a whole: before its first line, or at its end."""
    source = well_behaved(kind)
    return source + code + "\n" if code in ("del thing", "thing = None") else code + "\n" + source


# A model that sets these in every call is refused: the evaluation would depend on it.
REFUSED = (
    "torch.set_",
    "torch.use_",
    "torch.autocast",
    "torch.backends.",
    "np.seterr",
    "os.chdir",
    "warnings.",
    "logging.",
    "sys.",
    "signal.",
)


def _outcome_of_state(kind: str, place: str, code: str) -> str:
    """Code that changes settings of the process changes nothing of the run, but see `REFUSED`."""
    refused = kind == "forward" and place == "call" and code.startswith(REFUSED) and "close" not in code
    own_meta = kind == "example" and place == "call" and "meta" in code  # its next tensors have no values
    return "error" if refused or own_meta else "same"
