"""The run configuration: every key, its type, its range, its default and one line of what it means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
LARGEST = 2**63 - 1  # what TOML and Flower's run config can hold
Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
ClassOrAny = Annotated[int, Field(ge=-1, le=LARGEST)]


def _dashes(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


class Section(BaseModel):
    """A group of keys. In TOML and on the command line the names are written with dashes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_dashes, allow_inf_nan=False, validate_default=True)


class Grid(Section):
    transport: Literal["auto", "ray", "flower", "inline"] = Field(
        "auto", description="how messages reach the workers (auto: inline or ray, whichever is likely to end first)"
    )


class Ray(Section):
    num_workers: CountOrZero = Field(0, description="our Ray actors (0: one per CPU of the Ray cluster; on GPUs one per GPU)")
    gpus_per_worker: NonNegative = Field(
        0.0, description="share of a GPU that each actor reserves (0: on GPUs the largest with which all actors fit)"
    )
    start_timeout: Positive = Field(120.0, description="seconds in which the actors must be ready when they are first needed")
    parallel: CountOrZero = Field(
        0, description="cells of a sweep, or settings of a search, that run at once (0: one per worker); fewer share the workers"
    )


class Data(Section):
    name: str = Field("digits", description="data set: one of `DATASETS` (docs/data.md), or your own")
    options: str = Field("", description="arguments of the data set's reader, as a JSON object or as TOML keys")
    root: str = Field("data", description="folder that holds the data set (digits needs none)")
    cache_dir: str = Field("~/.cache/fl-sim", description="decoded data sets and burnt-in models")
    download: bool = Field(False, description="let torchvision fetch a missing data set")
    num_clients: Count = Field(100, description="N, the virtual clients")
    partition: str = Field(
        "iid", description="how the training part is divided among the clients: one of `PARTITIONS`, a file, or your own (docs/data.md)"
    )
    partition_options: str = Field("", description="arguments of the partition, as a JSON object or as TOML keys")
    burn_in_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the training part that only the burn-in trains on, and no client (0: it trains on the clients' shares)"
    )
    stream: bool = Field(
        False, description="a client's batches follow one another without repetition in a pass over its share; false: drawn anew each round"
    )
    public_size: CountOrZero = Field(
        0,
        description="examples of the training part that are public: cleanings are fitted to them (docs/cleaning.md), nobody else uses them",
    )
    dirichlet_alpha: Positive = Field(0.5, description="concentration of the Dirichlet partitions; small is uneven")
    shards_per_client: Count = Field(2, description="label-sorted shards per client in the shards partition")


class Model(Section):
    name: str = Field("cnn", description="architecture: one of `MODELS` (docs/models.md), or your own")
    options: str = Field("", description="arguments of your own model, as a JSON object or as TOML keys")
    start: str = Field(
        "", description="file with the state_dict from which the burn-in starts (safetensors or PyTorch's; empty: random initialisation)"
    )
    norm: Literal["group", "batch"] = Field("group", description="normalisation; batch statistics are frozen after burn-in")


class Client(Section):
    batch_size: Count = Field(10, description="examples of one local step (a smaller share is used whole)")
    local_steps: Count = Field(1, description="local steps per round; 1 is FedSGD")
    timeout: float = Field(0.0, ge=0.0, description="seconds to wait for a worker's reply before another worker is asked (0: an hour)")
    learning_rate: Positive = Field(0.05, description="local learning rate, used when local-steps > 1")
    weight: Literal["batch", "share", "equal"] = Field(
        "batch",
        description="weight of an update: its client's examples used in the round, or all of them (McMahan et al. 2017), or 1; always 1 "
        "under a strategy that ignores weights (docs/defences.md)",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="CPU threads of one worker's computation")
    block: Count = Field(50, description="consecutive client ids that are computed and summed as one unit")
    engine: Literal["auto", "vmap", "loop"] = Field(
        "auto", description="how the updates of single clients are computed; `auto` also fuses a clip into one backward pass where it can"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="number type of the clients' forward and backward passes; parameters, norms and sums are always float32"
    )


class Server(Section):
    clients_per_round: CountOrZero = Field(0, description="n, the clients sampled per round (0: all)")
    learning_rate: Positive = Field(0.05, description="server learning rate")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="server momentum")


class Strategy(Section):
    name: str = Field(
        "clip-after", description="the server's strategy: a rule of ours or a class of Flower, ByzFL or your own (docs/defences.md)"
    )
    options: str = Field("", description="arguments of a published, Flower, ByzFL or own class or rule, as a JSON object or as TOML keys")
    assumed_malicious: Annotated[int, Field(ge=-1, le=LARGEST)] = Field(
        -1,
        description="malicious clients of a round that a rule expects which takes such a number, unless strategy.options gives it (-1: the "
        "number in this configuration, at least 1; flwr.FedTrimmedAvg then keeps its own beta)",
    )
    optimiser: Literal["server", "own"] = Field(
        "server",
        description="what makes the step from a Flower strategy's model: `server.*`, as for every other strategy, or the strategy itself "
        "(FedAvgM, FedAdam, FedAdagrad and FedYogi are optimisers: always themselves)",
    )
    norm: Literal["l2", "linf"] = Field("l2", description="norm of the clip")
    bound: Annotated[float, Field(gt=0.0, allow_inf_nan=True)] = Field(10.0, description="norm bound of the clip (inf: never clip)")
    probe_size: Count = Field(64, description="clean examples of the test part that the server keeps for itself")
    probe_draw: Literal["auto", "random", "by-class"] = Field(
        "auto", description="how these are drawn: at random, or as many of each class (auto: by-class with dgc-2, else random)"
    )
    scope: Literal["aggregate", "client"] = Field("aggregate", description="dgc: check the combined update, or each client's")
    action: Literal["backtrack", "clip", "skip"] = Field(
        "backtrack", description="dgc, scope aggregate: what to do with a refused combined update"
    )
    guard: Literal["discrepancy", "rehearsing", "both"] = Field("discrepancy", description="dgc: which scores of a candidate model count")
    divergence: Literal["kl", "js"] = Field("kl", description="dgc: divergence of the Memorization Discrepancy")
    reference: Literal["both", "history", "fixed"] = Field(
        "both", description="dgc: compare with the model lag rounds earlier (history), the burnt-in one (fixed), or both"
    )
    rise: bool = Field(True, description="dgc: also score how far the probe loss is above its lowest value so far")
    lag: Count = Field(5, description="dgc: rounds between a model and its reference in the history")
    calibration_rounds: Annotated[int, Field(ge=10, le=LARGEST)] = Field(
        60,
        description="dgc: clean rounds that calibrate the thresholds, before a rehearsed probation; their model is discarded; dgc-2: the "
        "last three quarters of them run under the clip that the first quarter gave",
    )
    margin: Positive = Field(3.0, description="dgc: thresholds, in multiples of the largest score in clean rounds")
    drift: Annotated[float, Field(ge=1.0, allow_inf_nan=True)] = Field(
        1.25,
        description="dgc, scope aggregate: a probation follows when the running mean of a discrepancy exceeds this multiple of its clean "
        "maximum (inf: never)",
    )
    small_bound: Positive = Field(1.0, description="dgc: bound of the action `clip`")
    probation: CountOrZero = Field(
        20,
        description="dgc, scope aggregate: rounds after a refusal or a drift in which each update is clipped at the norms' upper quartile; "
        "each probation is four times as long as the one before (0: none)",
    )
    bound_quantile: Share = Field(0.5, description="dgc-2: each update is clipped at this quantile of the honest norms of the calibration")
    persistence_memory: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.95, description="dgc-2: beta, by which what a client has pushed so far counts less with each of its rounds"
    )
    most_lost: Positive = Field(
        5.0, description="dgc-2: points of the probe's accuracy that may be lost before the server returns to an earlier model"
    )
    most_lost_class: Positive = Field(20.0, description="dgc-2: the same for the accuracy of one class")


class Attack(Section):
    name: str = Field("accumulative", description="what the coalition does: one of `ATTACKS` (docs/attacks.md), or your own")
    options: str = Field("", description="arguments of your own attack, as a JSON object or as TOML keys")
    on_error: Literal["stop", "record"] = Field(
        "stop", description="when the attack raises: end the run with its traceback, or go on and record the coalition's members as failed"
    )
    malicious_fraction: Share = Field(
        0.01, description="share of the N clients that are malicious; the share among the sampled ones varies"
    )
    poison_ratio: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        -1.0, description="share of malicious clients among the sampled ones, exact in every round (-1: malicious-fraction decides)"
    )
    from_round: Count = Field(1, description="first round in which the coalition may act; before it is honest")
    to_round: CountOrZero = Field(0, description="last round in which it may act (0: to the end of the phase and its triggers)")
    every: Count = Field(1, description="it acts in every so many rounds, counted from from-round, and is honest in the others")
    knowledge: Literal["coalition", "rule", "omniscient", "updates"] = Field(
        "omniscient", description="what the coalition may see (docs/attacks.md)"
    )
    data: Literal["own-set", "members"] = Field("own-set", description="the coalition's data: a held-out set, or its members' shares")
    set_size: CountOrZero = Field(200, description="examples held out of the training part for the coalition's own set")
    batch_size: Count = Field(100, description="examples of the validation set drawn per round; the trigger batch has at most as many")
    objective: str = Field("lookahead", description="what the phase descends: one of `OBJECTIVES` (docs/attacks.md), or your own")
    scaling: Literal["relative", "lambda", "exact"] = Field(
        "relative", description="length of the accumulated direction; exact: the model moves by `step` along it alone"
    )
    step: Positive = Field(1.0, description="exact scaling: length of the step of each round, in gradient units")
    margin: NonNegative = Field(1.0, description="erosion: an example that is wrong by this much (logits) counts no more")
    surrogate: Literal["hinge", "ramp", "cross-entropy"] = Field(
        "hinge", description="erosion: loss of an attacked example (docs/attacks.md)"
    )
    ramp_width: Positive = Field(
        10.0, description="surrogate ramp: an example that is right by more than this minus the margin does not count"
    )
    rise_cap: NonNegative = Field(0.0, description="the coalition's own cap on the rise of its validation loss, in nats (0: none)")
    kl_cap: NonNegative = Field(0.0, description="its own cap on the mean divergence from the first model, in nats (0: none)")
    cap_weight: NonNegative = Field(10.0, description="weight of what is above rise-cap and kl-cap")
    provoke: bool = Field(
        False, description="send the trigger while no clip per client is published, so that a guard refuses it and turns to such a clip"
    )
    delivery: Literal["plain", "rehearse", "alternating"] = Field(
        "plain",
        description="what the members send: the attack's own updates; those that bring the server's rule nearest to what it wants; or "
        "its own with a large part that changes its sign from round to round",
    )
    push_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="alternating delivery: cosine of what a member sends with what the attack wants; the rest cancels"
    )
    retain: NonNegative = Field(0.0, description="weight of what the first model said of the classes that are not attacked (0: off)")
    rho: NonNegative = Field(0.7, description="relative scaling: length, in multiples of the running mean of the honest norm")
    floor: NonNegative = Field(0.1, description="relative scaling: smallest honest norm that is used")
    lambda_: NonNegative = Field(0.02, description="lambda scaling: factor of the direction as printed in Pang et al. 2021")
    stealth_gamma: Annotated[float, Field(gt=0.0, allow_inf_nan=True)] = Field(
        0.1, description="the accumulation pauses when the coalition's validation loss has risen by this much (inf: never)"
    )
    trigger: Literal["reversed", "clean"] = Field("reversed", description="negated or plain gradient of the trigger batch")
    trigger_refresh: Literal["latest", "accumulate"] = Field(
        "latest", description="reversed trigger from this round's model, or summed over rounds"
    )
    trigger_scale: NonNegative = Field(
        0.0,
        description="factor c of the trigger gradient (0: a reversed trigger gets length norm-bound); not with trigger-refresh accumulate",
    )
    alpha: Positive = Field(1.0, description="step of the accumulated trigger vector")
    norm_bound: Annotated[float, Field(gt=0.0, allow_inf_nan=True)] = Field(
        10.0, description="eta, an l2 norm (inf: no limit); attack.budget says what it bounds"
    )
    budget: Literal["combined", "client"] = Field(
        "combined",
        description="what norm-bound bounds: how far the coalition may move the combined update, or the length of each malicious update",
    )
    keep_honest: bool = Field(
        True, description="accumulate on top of the honest mean (Pang et al. 2021, Eq. 12); false: in its place (their released code)"
    )
    recovered_offset: bool = Field(True, description="hide the whole combined offset in the malicious updates")
    masks: NonNegative = Field(1.0, description="length of the random masks that make malicious updates differ, in mean honest norms")
    fire: Literal["rehearsed", "schedule"] = Field("rehearsed", description="trigger when a rehearsal succeeds, or at the end of the phase")
    fire_from: CountOrZero = Field(
        40,
        description="first round in which a rehearsed trigger may fire, at most schedule.accumulate-rounds (a short run: lower it, or set "
        "fire = schedule)",
    )
    discrepancy_weight: NonNegative = Field(0.0, description="adaptive: weight of the server's discrepancy in the objective (0: off)")
    discrepancy_lag: Count = Field(
        5, description="adaptive: rounds (with a sampled member) back of the discrepancy's second reference; the first is the start"
    )
    alignment: Share = Field(0.0, description="adaptive: least cosine of each update with the server's momentum (0: off)")
    tau: NonNegative = Field(0.0, description="strength of a generic attack (0: the default of the attack, see docs/attacks.md)")
    class_: ClassOrAny = Field(-1, description="targeted attacks: the class that is attacked (-1: all)")
    to_class: ClassOrAny = Field(
        -1, description="targeted attacks: the class that the model should say instead (-1: class 0 for a backdoor, any other for the rest)"
    )
    poison_share: Share = Field(0.5, description="backdoors: share of a member's batch that is poisoned, rounded up")
    boost: NonNegative = Field(
        1.0, description="backdoors: factor of a member's update (0: model replacement, n/m at equal weights and rates)"
    )
    project_norm: NonNegative = Field(
        0.0, description="backdoors: longest update before its factor, kept by a projection in each local step (0: off)"
    )
    mask_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="backdoors: share of the coordinates, those that the last global update changed most, that stay as they are (0: off)",
    )
    edge_data: str = Field("digits", description="edge-case: where its images come from: a public data set (docs/data.md), or `folder`")
    edge_root: str = Field("data", description="edge-case: folder of that data set, or of the images")
    edge_class: ClassOrAny = Field(-1, description="edge-case: class of that data set (-1: all)")
    perturbation: Literal["std", "unit", "sign"] = Field("std", description="direction of min-max and min-sum away from the mean")
    surface: Literal["updates", "images"] = Field(
        "updates",
        description="what the attack sends: any updates, or true gradients of images moved within epsilon (docs/image_attacks.md)",
    )
    epsilon: Share = Field(0.0627, description="images: how far each pixel of [0, 1] may be moved (16/255)")
    pgd_steps: Count = Field(10, description="images: C, gradient steps on the pixels per round")
    pgd_step: Share = Field(0.0, description="images: size of a step, in pixels of [0, 1] (0: 2 epsilon / C)")
    pgd_aim: Literal["residual", "inner-product", "cosines"] = Field(
        "residual",
        description="images: the steps of the phase ascend the inner product of the batch's gradient with what is missing of the wanted "
        "update (residual), or with all of it (as always in a trigger); cosines: of each parameter tensor, as in Pang's released code",
    )
    pgd_difference: NonNegative = Field(
        0.0, description="images: length of the step along the wanted update in a central difference (0: exact gradient)"
    )
    ball: Literal["original", "moving"] = Field(
        "original", description="images: epsilon of refreshed trigger images, around the original ones or around those of the round before"
    )
    trigger_images: Literal["fixed", "refreshed"] = Field(
        "fixed", description="images: the coalition's trigger images are made in its first round, or improved in every round"
    )
    image_fraction: Share = Field(1.0, description="images: share of a member's batch that the attacker supplies")
    attacked: ClassOrAny = Field(-1, description="moles: the class that the images should look like (-1: see attack.confounding)")
    confounding: ClassOrAny = Field(
        -1, description="moles: the class of the images (-1: the pair with the highest 99th percentile of p(attacked | image))"
    )
    moles: CountOrZero = Field(
        0,
        description="moles: how many images take turns (0: as many as bring their mean p(attacked | image) down to 0.765 rho + 0.101)",
    )
    choice: Literal["moles", "random", "highest-loss"] = Field(
        "moles", description="moles: the most similar images, or as controls any, or those with the highest loss, of the confounding class"
    )


class Cleaning(Section):
    """What an honest client does to its images before it trains on them."""

    name: str = Field("none", description="what an honest client does to its images: one of `CLEANINGS` (docs/cleaning.md), or your own")
    options: str = Field("", description="arguments of the cleaning, as a JSON object or as TOML keys")
    unit: Literal["example", "batch"] = Field(
        "example", description="dsc: correct each image by its own discrepancy, or a batch as a whole by its mean (as in the released code)"
    )
    fpr: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="dsc and filters: share of clean images above the threshold, where it is calibrated"
    )
    p0: Annotated[float, Field(ge=-1.0)] = Field(-1.0, description="dsc: threshold of the discrepancy at the start (-1: calibrated)")
    growth: NonNegative = Field(0.0, description="dsc: how much the threshold grows per round, where p0 is not calibrated")
    calibration_rounds: Annotated[int, Field(ge=3, le=LARGEST)] = Field(
        30, description="dsc: clean rounds that calibrate the threshold; their model is discarded"
    )
    history: Share = Field(0.5, description="dsc: the earlier model, as a share of the epochs of the burn-in")
    epsilon: Share = Field(0.2, description="dsc, correct-all, adversarial: how far each pixel of [0, 1] may be moved")
    steps: Count = Field(10, description="dsc, correct-all, adversarial: most gradient steps on the pixels")
    step: Share = Field(0.02, description="dsc, correct-all, adversarial: size of a step, in pixels of [0, 1]")
    shrunk: bool = Field(
        False, description="control: images stay as they are, and honest updates get the mean length that the cleaning would leave"
    )


class Schedule(Section):
    burn_in_epochs: CountOrZero = Field(20, description="epochs of clean central training before round 1")
    burn_in_batch_size: Count = Field(
        100, description="batch of the burn-in (a last batch of one example joins the one before, where a batch norm needs two)"
    )
    burn_in_learning_rate: Positive = Field(0.03, description="learning rate of the burn-in")
    burn_in_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="momentum of the burn-in")
    burn_in_weight_decay: float = Field(0.0, ge=0.0, description="weight decay of the burn-in")
    burn_in_augmentation: Literal["none", "crop-flip"] = Field(
        "none", description="augmentation in the burn-in: images at random crops, half of them mirrored"
    )
    accumulate_rounds: CountOrZero = Field(100, description="T, rounds that the accumulative phase has at most")
    recovery_rounds: CountOrZero = Field(20, description="clean rounds after the last trigger")
    triggers: CountOrZero = Field(1, description="trigger rounds (0: never fire)")
    trigger_every: Count = Field(1, description="rounds from one trigger to the next")
    trigger_wait: CountOrZero = Field(
        100, description="rounds that a due trigger waits at most for a malicious client to be sampled; then the run goes on without it"
    )


class Evaluate(Section):
    every: Count = Field(1, description="rounds between evaluations on the test set")
    examples: CountOrZero = Field(0, description="test examples per evaluation (0: all); the accuracies of the summary use all")
    by_class: bool = Field(True, description="record the accuracy of each class, and confusion matrices around the trigger and at the end")


class Monitor(Section):
    drop: Positive = Field(5.0, description="points below its best probe accuracy at which the server raises an alarm")
    class_drop: NonNegative = Field(
        0.0, description="points below the best accuracy of a class on the probe at which the server raises an alarm (0: off)"
    )
    patience: Count = Field(1, description="rounds in a row before the alarm")
    action: Literal["none", "log", "stop", "rollback"] = Field(
        "log", description="what an alarm does: it is recorded, ends the run, or rolls back to the last model without a low probe accuracy"
    )


class Checkpoint(Section):
    every: CountOrZero = Field(50, description="rounds between checkpoints, from which an interrupted run goes on (0: none)")
    keep: Count = Field(2, description="how many of the latest checkpoints are kept")


class Fault(Section):
    """Faults injected into the simulation, to see how it handles them."""

    raises: str = Field("", description="client ids, comma-separated, that raise in every round")
    nan: str = Field("", description="client ids, comma-separated, whose update is NaN in every round")
    reply: Literal[
        "none", "shape", "dtype", "nan", "inf", "missing", "duplicate", "negative-weight", "huge-weight", "nan-weight", "slow"
    ] = Field("none", description="what is wrong with every reply that holds a client of fault.clients")
    clients: str = Field("", description="client ids, comma-separated, of fault.reply")
    attempts: Literal["first", "all"] = Field("all", description="fault.reply: at the first attempt, or at the second too")
    kill_round: int = Field(
        0,
        ge=-1,
        le=LARGEST,
        description="round of each track in which the worker of block 0 is killed (0: never; -1: every round; ray only)",
    )


class Config(Section):
    """A whole run. Every key has a default, so an empty mapping is a valid run."""

    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="first part of the run folder's name")
    seed: CountOrZero = Field(1, description="all randomness of the run")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run (auto: cuda if there is one)")
    output_dir: str = Field("runs", description="folder of run folders")
    twin: bool = Field(True, description="also run the clean twin")
    control: bool = Field(True, description="also run the control: same trigger, no accumulation")
    control_honest: bool = Field(False, description="also run the honest-trigger track: same phase, an honest batch in the trigger's place")
    tracking: str = Field("none", description="trackers that also get the rounds, comma-separated: of `TRACKERS`, or your own")
    cells: str = Field("", description="internal: the cells of a sweep, as JSON")
    search: str = Field("", description="internal: an attack search, as JSON")
    grid: Grid = Grid.model_validate({})
    ray: Ray = Ray.model_validate({})
    data: Data = Data.model_validate({})
    model: Model = Model.model_validate({})
    client: Client = Client.model_validate({})
    server: Server = Server.model_validate({})
    strategy: Strategy = Strategy.model_validate({})
    attack: Attack = Attack.model_validate({})
    cleaning: Cleaning = Cleaning.model_validate({})
    schedule: Schedule = Schedule.model_validate({})
    evaluate: Evaluate = Evaluate.model_validate({})
    monitor: Monitor = Monitor.model_validate({})
    checkpoint: Checkpoint = Checkpoint.model_validate({})
    fault: Fault = Fault.model_validate({})

    @property
    def clients_per_round(self) -> int:
        """n, the clients sampled per round."""
        return self.server.clients_per_round or self.data.num_clients

    @property
    def probe_by_class(self) -> bool:
        """Whether the server's probe set holds as many examples of each class."""
        draw = self.strategy.probe_draw
        return draw == "by-class" or (draw == "auto" and self.strategy.name == "dgc-2")
