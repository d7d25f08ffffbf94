"""The configuration: what is refused, what is laid over what, and whose folder a stage is."""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from snakemake.cli import parse_config

from seas.artifacts import Provenance, write_table
from seas.config import Config, as_yaml, lineage, of_command_line, overlaid, validated
from seas.errors import InputError
from seas.plan import planned
from seas.versions import artifacts
from seas.weights import WEIGHTS
from seas.workflow import Workflow, load_workflow

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted(path.stem for path in (REPOSITORY / "config/experiments").glob("*.yaml"))
FROM_GENERATION = {"generation": 1, "metrics": 1, "downstream": 1}
FROM_RMP = {"rmp": 1, **FROM_GENERATION}
FROM_GENERATOR = {"generator": 1, **FROM_RMP}
JOBS = {
    None: {},
    "report": {},
    "downstream": {"downstream": 3},
    "metrics": {"metrics": 1},
    "generation": FROM_GENERATION,
    "rmp": FROM_RMP,
    "generator": FROM_GENERATOR,
    "base": {"base": 1, **FROM_GENERATOR},
    "data": {"split": 1, "crop_and_paste": 1, **FROM_GENERATOR, "downstream": 3},
}
"""The jobs that an experiment adds to its parent's, by the leftmost station that it changes; for one product, three arms."""
STATIONS = ("data", "base", "generator", "rmp", "generation", "metrics", "downstream", "report")


def added_jobs(experiment: str) -> dict[str, int]:
    """By hand, from the experiment's file alone: how many jobs of each stage it adds, for one product and three arms."""
    changes = yaml.safe_load((REPOSITORY / f"config/experiments/{experiment}.yaml").read_text()).get("settings", {})
    paper = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    changed = [name for name, values in changes.items() if any(paper[name][key] != values[key] for key in values)]
    jobs = JOBS[next((station for station in STATIONS if station in changed), None)]
    arms = changes.get("downstream", {}).get("trained_on")
    return jobs | {"downstream": len(arms)} if arms else jobs


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty repository with two datasets and a few experiments, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for product in ("bolt", "nut"):
        (tmp_path / "photos" / product / "train" / "good").mkdir(parents=True)
        (tmp_path / "photos" / product / "test" / "good").mkdir(parents=True)
    files = {
        "datasets/mine.yaml": {"root": "photos"},
        "datasets/other.yaml": {"root": "photos", "settings": {"generation": {"guidance": 2}}},
        "experiments/seas.yaml": {},
        "experiments/tau.yaml": {"extends": "seas", "settings": {"generation": {"threshold": 0.3}}},
        "experiments/mrm.yaml": {"extends": "seas", "settings": {"rmp": {"learning_rate": 0.001}}},
        "experiments/mrm_tau.yaml": {"extends": "mrm", "settings": {"generation": {"threshold": 0.3}}},
        "experiments/same.yaml": {"extends": "seas"},
        "experiments/two.yaml": {"extends": "seas", "settings": {"data": {"shots": 2}}},
        "experiments/two_tau.yaml": {"extends": "tau", "settings": {"data": {"shots": 2}}},
        "experiments/scores.yaml": {"extends": "seas", "settings": {"downstream": {"updates": 7}}},
        "experiments/arms.yaml": {"extends": "seas", "settings": {"downstream": {"trained_on": ["real", "generated"]}}},
    }
    for name, content in files.items():
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    yield tmp_path


def flow(**changes):
    return Workflow(overlaid({"datasets": ["mine"], "base": {"name": "b", "pretrained": None}}, changes))


ALL = {"experiments": ["seas", "tau", "mrm", "mrm_tau", "same", "scores", "arms"]}


@pytest.mark.parametrize(
    ("experiment", "stage", "owner"),
    [
        ("seas", "generation", "seas"),
        ("tau", "split", "seas"),
        ("tau", "generator", "seas"),
        ("tau", "rmp", "seas"),
        ("tau", "generation", "tau"),
        ("tau", "metrics", "tau"),
        ("tau", "crop_and_paste", "seas"),
        ("tau", "downstream/real", "seas"),
        ("tau", "downstream/crop_and_paste", "seas"),
        ("tau", "downstream/generated", "tau"),
        ("mrm", "generator", "seas"),
        ("mrm", "rmp", "mrm"),
        ("mrm_tau", "generator", "seas"),
        ("mrm_tau", "rmp", "mrm"),
        ("mrm_tau", "generation", "mrm_tau"),
        ("same", "downstream/generated", "seas"),
        ("scores", "metrics", "seas"),
        ("scores", "downstream/real", "scores"),
        ("arms", "downstream/real", "seas"),
    ],
)
def test_a_stage_with_the_parents_settings_is_the_parents_folder(project, experiment, stage, owner):
    assert flow(**ALL).owner("mine", experiment, stage) == owner


def test_the_number_of_shards_makes_no_other_set(project):
    (project / "config/experiments/sharded.yaml").write_text("extends: seas\nsettings: {generation: {shards: 3}}\n")
    workflow = flow(experiments=["sharded"])
    settings = workflow.settings("mine", "sharded")
    assert workflow.owner("mine", "sharded", "metrics") == "seas"
    assert "shards" not in workflow.parameters(settings, "generation")["generation"]
    assert workflow.shards("mine", "sharded", 0, "bolt") == []  # the set is that of seas, made in one piece
    made = planned(workflow)[Path("results/mine/seas/seed0/generation/bolt")]
    assert made.work.steps == workflow.settings("mine", "seas").generation.normals  # bolt has no anomaly types
    folder = "results/mine/seas/seed0/shards/bolt"
    sharded = flow(experiments=["sharded"], generation={"shards": 3})
    assert sharded.shards("mine", "seas", 0, "bolt") == [f"{folder}/{shard}" for shard in range(3)]


def test_experiments_that_differ_in_the_shots_alone_are_known(project):
    workflow = flow(experiments=["two", "two_tau", "tau"])
    found = {name: workflow.all_shots("mine", name) for name in ("seas", "two", "tau", "two_tau")}
    assert found == {"seas": "seas", "two": "seas", "tau": "tau", "two_tau": "tau"}


def test_the_more_particular_file_wins(project):
    workflow = flow(datasets=["mine", "other"], experiments=["tau"], generation={"guidance": 5, "threshold": 0.4})
    assert workflow.settings("mine", "seas").generation.guidance == 5
    assert workflow.settings("other", "seas").generation.guidance == 2
    assert workflow.settings("other", "tau").generation.threshold == 0.3


def test_threads_are_part_of_a_result_on_the_cpu_alone(project):
    for device, told in (("cpu", True), ("cuda", False)):
        workflow = flow(compute={"device": device})
        obeyed = workflow.parameters(workflow.settings("mine", "seas"), "generator", stage="generator")["compute"]
        assert ("threads" in obeyed) == told and obeyed["device"] == device


def test_all_products_are_one_scope_and_a_choice_is_single_scopes(project):
    whole, chosen = flow(), flow(products=["nut"])
    assert whole.scopes("mine", whole.settings("mine", "seas")) == ["all"]
    assert chosen.products("mine") == ["nut"]
    assert chosen.scopes("mine", chosen.settings("mine", "seas")) == ["nut"]
    assert chosen.products_of("mine", "all") == ["bolt", "nut"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"generator": {"unet_learning_rat": 1}},
            "'generator.unet_learning_rat' is no setting; did you mean 'unet_learning_rate'?",
        ),
        ({"generatr": {}}, "'generatr' is no setting; did you mean 'generator'?"),
        ({"generator": {"unet_learning_rate": -1}}, "'generator.unet_learning_rate' is -1: .* greater than 0"),
        ({"generator": {"unet_learning_rate": "fast"}}, "'generator.unet_learning_rate' is 'fast': .* number"),
        ({"generator": {"attention_layers": [7]}}, "give one or more of 1, 2, 3, 4"),
        ({"data": {"fit": "squeeze"}}, "'data.fit' is 'squeeze'"),
        ({"compute": {"device": "tpu"}}, "'compute.device' is 'tpu': .* 'cpu' or 'cuda'"),
        ({"compute": {"threads": {"bse": 2}}}, "bse is no stage"),
        ({"seeds": [-1]}, "seeds is \\[-1\\]"),
        ({"seeds": [1, 1]}, "seeds is \\[1, 1\\]"),
        ({"seeds": []}, "'seeds' is \\[\\]"),
        ({"datasets": []}, "'datasets' is \\[\\]"),
        ({"datasets": ["mine", "mine"]}, "'mine' stands in the list twice"),
        ({"datasets": ["gone"]}, "no dataset 'gone': .*gone.yaml does not exist; known are mine, other"),
        ({"experiments": ["gone"]}, "no experiment 'gone'"),
        ({"generator": 3}, "'generator' is 3"),
        ({"base": {"pretrained": "models/nowhere"}}, "models/nowhere"),
        ({"downstream": {"models": ["resnet"]}}, "'downstream.models.0' is 'resnet'"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(project, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        flow(**changes).check()


def test_a_product_that_is_nowhere(project):
    with pytest.raises(InputError, match="'bottle' is in none of the datasets; known are bolt, nut"):
        flow(products=["bottle"]).products("mine")


def test_faults_of_the_files(project):
    config = project / "config"
    (config / "datasets/broken.yaml").write_text("root: [")
    (config / "datasets/nowhere.yaml").write_text("root: no/such/folder")
    (config / "datasets/rootless.yaml").write_text("layout: mvtec_ad")
    (config / "datasets/stranger.yaml").write_text("root: photos\nsettings: {train: {}}")
    (config / "datasets/reporting.yaml").write_text("root: photos\nsettings: {report: {examples_per_type: 2}}")
    (config / "datasets/empty.yaml").write_text(f"root: {project / 'config'}")
    (config / "experiments/circle.yaml").write_text("extends: circle")
    (config / "experiments/typo.yaml").write_text("extends: seas\nsettings: {rmp: {learning: 1}}")
    for dataset, sentence in {
        "broken": "broken.yaml is no YAML",
        "nowhere": "'root' is 'no/such/folder', which is no folder",
        "rootless": "rootless.yaml: 'root' is missing",
        "stranger": "'settings.train' is no station",
        "reporting": "'settings.report' has no effect",
    }.items():
        with pytest.raises(InputError, match=sentence):
            flow(datasets=[dataset])
    with pytest.raises(InputError, match="holds no product"):
        flow(datasets=["empty"]).products("empty")
    with pytest.raises(InputError, match="'extends' leads back to 'circle'"):
        flow(experiments=["circle"])
    with pytest.raises(InputError, match="typo.yaml on .*mine.yaml: 'rmp.learning' is no setting"):
        flow(experiments=["typo"])
    (config / "experiments/child.yaml").write_text("extends: typo")
    with pytest.raises(InputError, match="typo.yaml on .*mine.yaml: 'rmp.learning' is no setting"):
        flow(experiments=["child"])


def test_shifts_without_mirror_images_are_refused(project):
    (project / "config/experiments/turned.yaml").write_text(
        "extends: seas\nsettings: {generator: {shifts: true}, data: {augmentation: half_turn}}"
    )
    sentence = (
        "turned.yaml on .*mine.yaml: generator.shifts needs a data.augmentation that mirrors; 'half_turn' does not"
    )
    with pytest.raises(InputError, match=sentence):
        flow(experiments=["turned"])


def test_two_bases_of_one_name_are_refused(project):
    (project / "config/experiments/big.yaml").write_text("extends: seas\nsettings: {base: {image_size: 32}}")
    with pytest.raises(
        InputError, match=r"base\.name is 'b' in seas on mine and in big on mine, but .* differ \(base\.image_size\)"
    ):
        flow(experiments=["big"]).check()


def test_a_base_is_made_of_its_own_settings_alone(project):
    threads = dict.fromkeys(("generator", "rmp", "generation", "metrics", "downstream"), 1) | {"base": 2}
    (project / "config/experiments/threads.yaml").write_text(
        yaml.safe_dump({"extends": "seas", "settings": {"compute": {"threads": threads | {"downstream": 4}}}})
    )
    both = flow(experiments=["seas", "threads"], compute={"device": "cpu", "threads": threads})
    both.check()
    owners = {stage: both.owner("mine", "threads", stage) for stage in ("generation", "metrics", "downstream/real")}
    assert owners == {"generation": "seas", "metrics": "seas", "downstream/real": "threads"}


def test_what_no_job_will_need_is_not_looked_at(project):
    """The parent owns the split alone: its base, its U-Net's blocks and its metrics' weights are nobody's."""
    parent = {
        "base": {"name": "other", "pretrained": "no/such/base"},
        "metrics": {"extractors": "paper", "weights_folder": "no"},
    }
    own = {"base": {"name": "b", "pretrained": None}, "metrics": {"extractors": "auto"}}
    (project / "config/experiments/own.yaml").write_text(yaml.safe_dump({"extends": "seas", "settings": own}))
    flow(experiments=["own"], **parent).check()
    with pytest.raises(InputError, match="seas on mine: base.pretrained is 'no/such/base', which is no folder"):
        flow(experiments=["own", "seas"], **parent).check()


def test_types_with_too_few_images_are_found_before_any_job(project):
    for number in range(4):
        path = project / f"photos/nut/test/rust/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    flow(data={"shots": 1}).check()
    with pytest.raises(InputError, match=r"nut: data\.shots is 2, but a third of the type 'rust' has 1 images"):
        flow(data={"shots": 2}).check()
    flow(data={"shots": 2}, products=["bolt"]).check()
    for number in (2, 3):
        (project / f"photos/nut/test/rust/{number}.png").unlink()
    with pytest.raises(InputError, match="nut: the type 'rust' has 2 images; 3 are needed"):
        flow().check()
    flow(data={"shots": "all"}).check()
    flow(data={"train_only_small_types": True}).check()


def test_a_key_that_stands_twice_in_a_file_is_refused_as_snakemake_reads_it(project):
    """Snakemake hands over the merged content, in which the first is lost, and the files' names."""
    (project / "twice.yaml").write_text("generation: {guidance: 2}\ngeneration: {threshold: 0.3}\n")
    with pytest.raises(InputError, match=r"twice\.yaml is no YAML: 'generation' stands twice"):
        Workflow({"datasets": ["mine"], "generation": {"threshold": 0.3}}, ["twice.yaml"])


@pytest.mark.parametrize(
    ("station", "key", "value"),
    [
        ("generator", "checkpoint_every", 7),
        ("generator", "gradient_checkpointing", True),
        ("generator", "offload_optimizer", True),
        ("rmp", "checkpoint_every", 7),
        ("generation", "shards", 3),
        ("metrics", "weights_folder", "elsewhere"),
        ("downstream", "checkpoint_every", 7),
    ],
)
def test_a_setting_of_which_no_result_is_a_function_reaches_its_job_and_no_manifest(project, station, key, value):
    plain, changed = flow(), flow(**{station: {key: value}})
    settings = [getattr(workflow.settings("mine", "seas"), station) for workflow in (plain, changed)]
    assert settings[0].obeyed() == settings[1].obeyed() and key not in settings[0].obeyed()
    assert settings[1].not_obeyed()[key] == value != settings[0].not_obeyed()[key]
    made = [{artifact.path: artifact.settings for artifact in artifacts(workflow)} for workflow in (plain, changed)]
    assert made[0] == made[1]


def test_the_papers_base_must_have_its_sizes(project, sd_shaped, tiny_base):
    flow(base={"name": "sd_v1_4", "pretrained": str(sd_shaped)}).check()
    flow(base={"name": "other", "pretrained": str(tiny_base)}).check()
    with pytest.raises(InputError, match="give another base.name"):
        flow(base={"name": "sd_v1_4", "pretrained": str(tiny_base)}).check()


def test_a_base_is_built_with_the_settings_of_the_experiment_that_builds_it(project):
    text = "extends: seas\nsettings: {base: {pretrained: null, unet_updates: 10}}"
    (project / "config/experiments/own_base.yaml").write_text(text)
    both = flow(experiments=["seas", "own_base"], base={"name": "b", "pretrained": "somewhere"})
    assert both.base_named("b").base.unet_updates == 10


def test_a_dataset_without_the_wanted_product_does_not_run(project):
    (project / "elsewhere/screw/train/good").mkdir(parents=True)
    (project / "config/datasets/other.yaml").write_text("root: elsewhere")
    both = flow(datasets=["mine", "other"], products=["screw"])
    assert both.runs() == [("other", "seas", 0)]
    assert not [path for path in both.results() if path.startswith("results/mine")]


def test_the_command_line_takes_files_and_settings_as_snakemake_does(project):
    content = {"datasets": ["mine"], "base": {"name": "b", "pretrained": None}}
    (project / "config/config.yaml").write_text(yaml.safe_dump(content))
    (project / "more.yaml").write_text("rmp: {channels: 288}\nseeds: [1]")
    given = ["more.yaml", "seeds=[3, 4]", "generation={threshold: 0.4}"]
    found = load_workflow(given).config
    assert (found.rmp.channels, found.seeds, found.generation.threshold) == (288, [3, 4], 0.4)
    with pytest.raises(InputError, match="'seeds=\\[' is no 'key=value'"):
        load_workflow(["seeds=["])


def test_snakemakes_command_line_says_what_a_file_would(project):
    """Its parser makes texts of all that stands in braces: "4" is no number of shots, and "null" no absent file."""
    content = {"datasets": ["mine"], "base": {"name": "b", "pretrained": None}}
    (project / "config/config.yaml").write_text(yaml.safe_dump(content))
    given = ["data={shots: 4, groups: null}", "generation={peak_threshold: null, batch_size: 16}", "products=null"]
    given += ["rmp={skip: false}", "seeds=[3, 4]", "generator={attention_layers: [1, 2]}"]
    found = Workflow(overlaid(content, of_command_line(parse_config(given)))).config
    assert (found.data.shots, found.data.groups, found.products, found.rmp.skip) == (4, None, None, False)
    assert found == load_workflow(given).config


@pytest.mark.parametrize("given", ["products=[01, no]", 'products=["01", "no"]'])
def test_a_product_may_be_called_by_a_number(project, given):
    content = {"datasets": ["mine"], "base": {"name": "b", "pretrained": None}}
    (project / "config/config.yaml").write_text(yaml.safe_dump(content))
    of_snakemake = Workflow(overlaid(content, of_command_line(parse_config([given]))))
    assert of_snakemake.config.products == load_workflow([given]).config.products == ["01", "no"]


def test_a_text_that_is_no_yaml_stays_a_text():
    texts = {"a": "@home", "b": "", "c": "a: b", "d": "[1]", "e": "tau_0.1", "f": "C:\\files"}
    assert as_yaml(texts) == texts


def test_settings_cannot_be_changed_later():
    config = validated(Config, {"datasets": ["x"]}, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.data.image_size = 3


def test_the_groups_of_a_product_are_part_of_its_split(project):
    whole = flow(data={"groups": "groups.csv"})
    assert whole.groups("mine", "seas", "bolt") is None
    (project / "photos/bolt/groups.csv").write_text("image,group\na.png,1\n")
    before = whole.groups("mine", "seas", "bolt")
    (project / "photos/bolt/groups.csv").write_text("image,group\na.png,2\n")
    assert before != whole.groups("mine", "seas", "bolt") is not None
    assert flow().groups("mine", "seas", "bolt") is None
    whole.check_groups()
    with pytest.raises(InputError, match=r"no product of photos has the file of groups 'group\.csv' \(data\.groups\)"):
        flow(data={"groups": "group.csv"}).check()


@pytest.mark.parametrize("experiment", SHIPPED)
def test_a_shipped_experiment_adds_the_jobs_of_what_it_changes(project, experiment):
    shutil.copytree(REPOSITORY / "config/experiments", project / "config/experiments", dirs_exist_ok=True)
    assert jobs_beside_its_parents(project, experiment) == added_jobs(experiment)


@pytest.mark.parametrize(
    ("settings", "jobs"), [({"rmp": {"channels": 96}}, FROM_RMP), ({"generation": {"threshold": 0.4}}, FROM_GENERATION)]
)
def test_an_ablation_of_the_mask_trains_no_generator(project, settings, jobs):
    (project / "config/experiments/own.yaml").write_text(yaml.safe_dump({"extends": "seas", "settings": settings}))
    assert jobs_beside_its_parents(project, "own") == jobs


def jobs_beside_its_parents(project, experiment):
    shutil.rmtree(project / "photos/nut")
    whole = flow(experiments=lineage(experiment))
    paths = {artifact.path for artifact in artifacts(flow(experiments=lineage(experiment)[1:] or ["seas"]))}
    return dict(Counter(artifact.stage for artifact in artifacts(whole) if artifact.path not in paths))


@pytest.mark.parametrize("overlay", ["demo", "windows", "card_12gb", "card_24gb"])
def test_what_the_project_ships_to_be_laid_over_the_configuration_is_valid(overlay):
    content = yaml.safe_load((REPOSITORY / f"config/{overlay}.yaml").read_text())
    validated(Config, overlaid({"datasets": ["mine"]}, content), overlay)


def test_a_given_base_is_known_by_its_files_and_not_by_its_card(project):
    base = project / "models/given"
    base.mkdir(parents=True)
    (base / "weights").write_text("one")
    (project / "config/experiments/given.yaml").write_text(
        "extends: seas\nsettings: {base: {name: given, pretrained: models/given}}"
    )
    assert flow(experiments=["given"]).given_base("mine", "seas") is None, "the workflow trains it"

    def known():
        return flow(experiments=["given"]).given_base("mine", "given")

    before = known()
    (base / "README.md").write_text("a card")
    assert known() == before
    (base / "weights").write_text("two")
    assert known() != before


def test_the_bases_that_the_workflow_trains(project):
    (project / "config/experiments/given.yaml").write_text(
        "extends: seas\nsettings: {base: {name: given, pretrained: results/base/given}}"
    )
    assert flow(experiments=["seas", "given"]).built_bases() == ["b"]


@pytest.mark.parametrize(("extractors", "kept"), [("auto", True), ("efficientnet_lite0", False)])
def test_metrics_of_the_papers_networks_stay_good_where_their_weights_are_not(project, extractors, kept):
    workflow = flow(metrics={"extractors": extractors, "weights_folder": "nowhere"})
    assert not workflow.measures_as_the_paper("mine", "seas", 0, "bolt")
    table = project / "results/mine/seas/seed0/metrics/bolt.parquet"
    origin = Provenance("metrics", 1, {"paper_weights": True}, 0, {})
    write_table(pd.DataFrame({"a": [1]}), table, origin, facts=True)
    assert workflow.measures_as_the_paper("mine", "seas", 0, "bolt") is kept


def test_the_papers_weights_matter_to_metrics_that_take_them_alone(project):
    weights = project / "weights"
    weights.mkdir()
    for name in ("inception_v3", "vgg16"):
        (weights / WEIGHTS[name].file).touch()
    for extractors, taken in (("auto", True), ("efficientnet_lite0", False)):
        workflow = flow(metrics={"extractors": extractors, "weights_folder": "weights"})
        assert workflow.measures_as_the_paper("mine", "seas", 0, "bolt") is taken


def test_where_the_weights_lie_gives_an_experiment_no_metrics_of_its_own(project):
    (project / "config/experiments/elsewhere.yaml").write_text(
        "extends: seas\nsettings: {metrics: {weights_folder: elsewhere}}"
    )
    workflow = flow(experiments=["seas", "elsewhere"])
    assert workflow.folder("mine", "elsewhere", 0, "metrics") == workflow.folder("mine", "seas", 0, "metrics")
