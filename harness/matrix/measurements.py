"""What is measured on one hardware, and how: the tables under [measurements.NAME]."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from harness.matrix.table import Table


class Memory(Table):
    max_new_tokens: PositiveInt


_WARMUP_TOKENS = Field(
    default=None,
    description="How many tokens a round has that warms up, outside of gates; without, as many as those that count. "
    "Two run all that a round does: the prompt, and a further token.",
)


class Generate(Table):
    max_new_tokens: PositiveInt
    warmup: int = Field(1, ge=0)
    warmup_tokens: PositiveInt | None = _WARMUP_TOKENS
    rounds: PositiveInt


class Latency(Table):
    batch_sizes: list[PositiveInt]
    input_len: PositiveInt
    output_len: PositiveInt
    warmup: int = Field(1, ge=0)
    warmup_tokens: PositiveInt | None = _WARMUP_TOKENS
    rounds: PositiveInt


class Serving(Table):
    num_prompts: list[PositiveInt]
    output_len: PositiveInt | None = None
    chat_tokens: PositiveInt = 256
    rounds: PositiveInt


class Text(Table):
    windows: PositiveInt
    window_tokens: PositiveInt


class Engine(Table):
    """Flags that baseline and recipe get alike."""

    enforce_eager: bool = False
    max_model_len: PositiveInt
    kv_cache_gib: PositiveFloat | None = None
    gpu_memory_utilization: PositiveFloat = 0.9
    max_num_batched_tokens: PositiveInt | None = None
    shared: bool = Field(
        default=False,
        description="Whether the server's engine is the offline engine too, where the server can (vLLM): one start for "
        "both. Only where `python -m harness fairness` finds both alike within 1 %.",
    )


class Mobile(Table):
    """What an ExecuTorch program is exported for and measured with: lengths in tokens.

    ``context`` is the size of the program's KV cache. ``windows`` of ``window_tokens`` real tokens are compared on a
    device; ``emulated_windows`` of them where an emulator runs the program.
    """

    context: PositiveInt
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    warmup: int = Field(1, ge=0)
    rounds: PositiveInt
    windows: PositiveInt
    window_tokens: PositiveInt
    emulated_windows: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> Mobile:
        longest = max(self.prompt_tokens + self.new_tokens, self.window_tokens + 1)
        if longest > self.context:
            raise ValueError(f"context: {self.context} tokens do not hold the {longest} that are measured")
        return self


class TimeLimits(Table):
    """Seconds after which a stage of a worker is ended and recorded as a failure."""

    prepare: PositiveFloat
    start: PositiveFloat
    measure: PositiveFloat
    evaluate: PositiveFloat


class Blocks(Table):
    """How often a block of measurement is repeated, and how many rounds a block of a gate has."""

    repeats: int = Field(default=2, ge=0, description="Repeats where the machine was throttled or shared meanwhile.")
    gate_rounds: PositiveInt | None = Field(
        default=None,
        description="Timed rounds of generate and latency in a gate's block, where a process's start costs more than "
        "the rounds and those of the session are too few, and half as many of serving; none: as many as in a session.",
    )
    gate_seconds: PositiveFloat | None = Field(
        default=None,
        description="Seconds that one side's timed rounds of one metric may take in a gate's block, which leaves three "
        "at least; none: however long they take.",
    )


class Load(Table):
    """How long workloads run, and what is searched; what they are of is said by [workloads.NAME]."""

    workloads: list[str] = Field(
        default=[],
        description="Those that are measured where tests of load are asked for (-k capacity, suites/test_load.py) and "
        "--workload names none.",
    )
    requests: PositiveInt = Field(default=100, description="Requests that a run has at least.")
    saturating_requests: PositiveInt = Field(
        default=1600,
        description="Requests at once, at most, that saturation is looked for with: from `requests` on twice as many "
        "each time, until no more tokens a second come of it.",
    )
    seconds: PositiveFloat = Field(default=10.0, description="Seconds for which requests arrive in a run, at least.")
    rounds: PositiveInt = Field(default=1, description="Runs at each rate of the sweep; each draws its own arrivals.")
    sweep: list[PositiveFloat] = Field(
        default=[0.2, 0.4, 0.6, 0.8, 0.95],
        description="Rates of the sweep, as shares of what the server completes where all requests come at once.",
    )
    precision: PositiveFloat = Field(
        default=0.05, description="How close, as a share, the rates must be between which the capacity lies."
    )
    most_runs: PositiveInt = Field(
        default=12, description="Runs that the search for one capacity may add to those of the sweep."
    )
    idle_seconds: PositiveFloat = Field(
        default=3.0, description="Seconds for which the idle power is taken, which energy is told without."
    )
    price: PositiveFloat | None = Field(
        default=None,
        description="What an hour of one device costs; tokens have a price only where it is given. It counts for each "
        "of several GPUs that share a model.",
    )
    currency: str = Field(default="USD", description="What the price is in.")


class Measurements(Table):
    """What is measured on one hardware, and how."""

    memory: Memory
    generate: Generate
    latency: Latency
    serving: Serving
    text: Text
    engine: Engine
    time_limits: TimeLimits
    blocks: Blocks = Blocks()
    load: Load = Load()
    mobile: Mobile | None = None

    def in_a_gate(self) -> Measurements:
        """Return them with as many rounds as a gate's block has: of serving half as many."""
        rounds = self.blocks.gate_rounds
        if rounds is None:
            return self
        return self.model_copy(
            update={
                "generate": self.generate.model_copy(update={"rounds": rounds}),
                "latency": self.latency.model_copy(update={"rounds": rounds}),
                # A round is a benchmark of its own, which takes several times as long as a batch.
                "serving": self.serving.model_copy(update={"rounds": (rounds + 1) // 2}),
            }
        )
