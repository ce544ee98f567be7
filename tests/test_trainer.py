"""IterativePQ within transformers' Trainer."""

import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from pgkmeans_sk import nn  # noqa: E402 - only if the libraries are there
from pgkmeans_sk.interop.trainer import PGKMeansCallback  # noqa: E402
from pgkmeans_sk.nn.state import compressed_state  # noqa: E402

SPEC = {"defaults": {"n_codes": 8, "block_size": 4}}
NAMES = ["ffn", "embeddings", "attention", "others"]
N_EXAMPLES, BATCH_SIZE = 12, 4
STEPS_PER_EPOCH = N_EXAMPLES // BATCH_SIZE


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of torch that wait for each other take ten times as long for models as small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def dataset():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 64, (N_EXAMPLES, 8), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 2} for row in tokens]


class Watch(transformers.TrainerCallback):
    """Notes after each step how many weights are compressed, and which group's turn it is."""

    def __init__(self, callback):
        self.callback = callback
        self.groups = []
        self.n_compressed = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.groups.append(self.callback.stages[-1].name)
        self.n_compressed.append(len(compressed_state(model)))


def trainer_of(model, callback, folder, **options):
    options = {"num_train_epochs": 4, "learning_rate": 1e-2, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH_SIZE,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=3,
        **{"save_strategy": "no", "logging_strategy": "no", **options},
    )
    watch = Watch(callback)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=dataset(),
        eval_dataset=dataset(),
        callbacks=[callback, watch],
    )
    return trainer, watch


@pytest.mark.parametrize("options", [{}, {"optim": "sgd", "optim_args": "momentum=0.9"}])
def test_a_group_an_epoch(options, tmp_path):
    model, start = bert(), bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), epochs_per_stage=1)
    trainer, watch = trainer_of(model, callback, tmp_path, **options)
    trainer.train()
    assert [stage.name for stage in callback.stages] == NAMES
    assert watch.groups == [name for name in NAMES for _ in range(STEPS_PER_EPOCH)]
    sizes = [len(stage.tensors) for stage in callback.stages]
    totals = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert watch.n_compressed == [n for n in totals for _ in range(STEPS_PER_EPOCH)]
    nn.compress_model(start, SPEC)
    assert [s.name for s in compressed_state(model)] == [s.name for s in compressed_state(start)]
    for state, untrained in zip(compressed_state(model), compressed_state(start), strict=True):
        assert not torch.equal(state.original, untrained.original), state.name
    assert list(tmp_path.iterdir()) == []

    model.eval()
    inputs = {"input_ids": torch.stack([row["input_ids"] for row in dataset()])}
    outputs = model(**inputs).logits
    assert torch.equal(nn.bake(model)(**inputs).logits, outputs)


def test_a_group_every_two_steps_and_the_last_until_the_end(tmp_path):
    model = bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), steps_per_stage=2)
    trainer, watch = trainer_of(model, callback, tmp_path, max_steps=10)
    trainer.train()
    assert watch.groups == [name for name in NAMES for _ in range(2)] + ["others"] * 2


def test_steps_are_those_of_the_optimizer(tmp_path):
    model = bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), steps_per_stage=1)
    trainer, watch = trainer_of(
        model, callback, tmp_path, max_steps=4, gradient_accumulation_steps=2
    )
    trainer.train()
    assert watch.groups == NAMES


def test_it_is_the_loop_that_one_would_write(tmp_path):
    model, other = bert(), bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), epochs_per_stage=1)
    # The bias of keys changes nothing: its gradient is rounding, and a usual epsilon makes steps
    # of that.
    options = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0}
    options |= {"adam_epsilon": 1e-3}
    trainer, _ = trainer_of(model, callback, tmp_path, **options)
    batches = []
    original = trainer.training_step

    def step(model, inputs, *args):
        batches.append({name: value.clone() for name, value in inputs.items()})
        return original(model, inputs, *args)

    trainer.training_step = step
    torch.manual_seed(5)  # nothing of it is used: dropout is off
    for module in (*model.modules(), *other.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    other.train()
    left = iter(batches)
    for stage in nn.IterativePQ(other, SPEC):
        stage.reset_optimizer_state(optimizer)
        for _ in range(STEPS_PER_EPOCH):
            optimizer.zero_grad()
            other(**next(left)).loss.backward()
            optimizer.step()
    for (name, value), expected in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_sees_what_was_trained(tmp_path):
    """The next group is compressed after the evaluation of a stage, not before."""
    model = bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), steps_per_stage=STEPS_PER_EPOCH)
    trainer, _ = trainer_of(model, callback, tmp_path, eval_strategy="epoch")
    seen = []
    evaluate = trainer.evaluate

    def noted(*args, **kwargs):
        seen.append(callback.stages[-1].name)
        return evaluate(*args, **kwargs)

    trainer.evaluate = noted
    trainer.train()
    assert seen == NAMES


def test_a_training_that_was_killed_goes_on_with_its_stage(tmp_path):
    class Kill(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == STEPS_PER_EPOCH + 2:
                raise KeyboardInterrupt

    def callback_of(model):
        iterative = nn.IterativePQ(model, SPEC, checkpoint=tmp_path / "stage")
        return PGKMeansCallback(iterative, epochs_per_stage=1)

    model = bert()
    callback = callback_of(model)
    trainer, _ = trainer_of(model, callback, tmp_path)
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [stage.name for stage in callback.stages] == NAMES[:2]

    model = bert()
    callback = callback_of(model)
    trainer, watch = trainer_of(model, callback, tmp_path, num_train_epochs=3)
    trainer.train()
    assert [stage.name for stage in callback.stages] == NAMES[1:]
    assert watch.groups == [name for name in NAMES[1:] for _ in range(STEPS_PER_EPOCH)]

    done = bert()
    callback = callback_of(done)
    assert list(callback.iterative) == []
    for name, value in model.state_dict().items():
        assert torch.equal(done.state_dict()[name], value), name
    trainer, _ = trainer_of(done, callback, tmp_path)
    with pytest.raises(ValueError, match="stages are all finished"):
        trainer.train()


def test_training_that_ends_early_leaves_a_warning(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    callback = PGKMeansCallback(nn.IterativePQ(bert(), SPEC), epochs_per_stage=1)
    trainer, _ = trainer_of(callback.iterative.model, callback, tmp_path)
    trainer.add_callback(Stop())
    with pytest.warns(UserWarning, match="ended in stage 1 of 4"):
        trainer.train()


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ({"epochs_per_stage": 2}, {"num_train_epochs": 7}, "7 epochs, but expected at least 8"),
        ({"steps_per_stage": 2}, {"max_steps": 7}, "7 steps, but expected at least 8 for the 4"),
        (
            {"steps_per_stage": 1},
            {
                "load_best_model_at_end": True,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
            },
            "load_best_model_at_end=True",
        ),
    ],
)
def test_training_that_cannot_go_well_does_not_begin(stages, options, message, tmp_path):
    model = bert()
    callback = PGKMeansCallback(nn.IterativePQ(model, SPEC), **stages)
    trainer, _ = trainer_of(model, callback, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert compressed_state(model) == []


def test_another_model_is_refused(tmp_path):
    callback = PGKMeansCallback(nn.IterativePQ(bert(), SPEC), epochs_per_stage=1)
    trainer, _ = trainer_of(bert(), callback, tmp_path)
    with pytest.raises(ValueError, match="a trainer for another BertForSequenceClassification"):
        trainer.train()


def test_several_processes_are_refused():
    callback = PGKMeansCallback(nn.IterativePQ(bert(), SPEC), epochs_per_stage=1)
    state = transformers.TrainerState(num_train_epochs=4)
    for given in ({"world_size": 2, "deepspeed": None}, {"world_size": 1, "deepspeed": "a.json"}):
        args = SimpleNamespace(load_best_model_at_end=False, **given)
        with pytest.raises(ValueError, match="several processes or with DeepSpeed"):
            callback.on_train_begin(args, state, None, model=callback.iterative.model)


def test_a_training_of_the_trainer_is_not_resumed(tmp_path):
    model = bert()
    trainer, _ = trainer_of(
        model,
        PGKMeansCallback(nn.IterativePQ(model, SPEC), epochs_per_stage=1),
        tmp_path,
        save_strategy="steps",
        save_steps=math.ceil(STEPS_PER_EPOCH / 2),
    )
    trainer.pop_callback(PGKMeansCallback)
    trainer.pop_callback(Watch)
    trainer.args.max_steps = 2
    trainer.train()
    again = bert()
    callback = PGKMeansCallback(nn.IterativePQ(again, SPEC), epochs_per_stage=1)
    trainer, _ = trainer_of(again, callback, tmp_path)
    with pytest.raises(ValueError, match="goes on after step 2"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "expected one of them"),
        ({"epochs_per_stage": 1, "steps_per_stage": 1}, ValueError, "expected one of them"),
        ({"epochs_per_stage": 0}, ValueError, "epochs_per_stage=0"),
        ({"steps_per_stage": 1.5}, ValueError, r"steps_per_stage=1\.5"),
        ({"iterative": None, "steps_per_stage": 1}, TypeError, "iterative of type NoneType"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, message):
    given = {"iterative": nn.IterativePQ(bert(), SPEC), **options}
    with pytest.raises(error, match=message):
        PGKMeansCallback(given.pop("iterative"), **given)
