"""What deploy/ holds does what it says: each file is checked by whoever is to read it, where that
is installed here, and its command lines are run on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pubsub import Peer
from pubsub._version import __version__
from pubsub.cli.pubsub import pubsub
from pubsub.cli.pubsubd import pubsubd
from pubsub.faces.blockingsub import BlockingSub
from pubsub.metrics import METRICS, PROCESS, exposition, register
from pubsub.stats import PubStats, Stats, SubscriberStats, SubStats
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests.cli.processes import LONG, Running, Start, execute, processes
from tests.integration.support import coordinator_in_thread, free_port

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "pubsubd-coordinator.service"
DOCKERFILE = DEPLOY / "container" / "Dockerfile"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SBATCH = DEPLOY / "slurm" / "pubsubd.sbatch"
PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "pubsubd.rules.yml"
GRAFANA = DEPLOY / "grafana" / "pubsubd.json"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these places are Linux's")


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as starter:
        yield starter


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    write_file(path, f"{Key.new().text()}\n".encode())
    return path


def read_until(process: Running, beginning: str) -> str:
    """The line on standard error that begins so."""
    while not (line := process.err()).startswith(beginning):
        pass
    return line


def serves_and_is_healthy(
    start: Start, serve: list[str], probes: list[list[str]], env: dict[str, str]
) -> None:
    """Run a command line that serves and those that look after it, all at another port."""
    port = str(free_port())

    def at_port(words: list[str]) -> list[str]:
        return [word.replace("7700", port) for word in words]

    words = at_port(serve)
    process = start(*words, *([] if port in words else ["--port", port]), **env)
    read_until(process, f"pubsubd: coordinator on 0.0.0.0:{port}")
    for probe in probes:
        result = execute(*at_port(probe), **env)
        assert (result.code, result.err) == (0, ""), probe
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    for probe in probes:
        assert execute(*at_port(probe), **env).code == 1, probe


# --- systemd ----------------------------------------------------------------------------------

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@analyze
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "pubsubd"
    program.write_text("")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/pubsubd/bin/pubsubd", str(program)))
    for command in (["verify"], ["security", "--offline=yes", "--threshold=25"]):
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)],
            capture_output=True,
            text=True,
            timeout=LONG,
            env={**os.environ, "SYSTEMD_PAGER": ""},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(unit) not in done.stderr, done.stderr  # a line that it does not know


def test_the_unit_starts_a_coordinator_that_says_when_it_is_ready(start: Start, key: Path) -> None:
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line)
    assert lines["Type"] == "notify"
    credential = lines["LoadCredential"].partition(":")[0]
    name, _, value = lines["Environment"].partition("=")
    assert value == f"%d/{credential}"
    program, *words = shlex.split(lines["ExecStart"])
    assert Path(program).name == "pubsubd"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(key.parent / "s"))
        manager.settimeout(LONG)
        assert key.name == credential
        process = start(
            *("pubsubd", *words, "--port", "0"),
            **{name: value.replace("%d", str(key.parent)), "NOTIFY_SOCKET": str(key.parent / "s")},
        )
        assert manager.recv(4096).startswith(b"READY=1\nSTATUS=coordinator on 0.0.0.0:")
        process.signal(signal.SIGTERM)
        assert manager.recv(4096).startswith(b"STOPPING=1")
        assert process.wait() == 0


# --- containers -------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    lines = (line.partition(" ") for line in text.splitlines() if line)
    return [(word, rest.strip()) for word, _, rest in lines]


def test_the_image_runs_a_coordinator_that_its_check_finds(start: Start, key: Path) -> None:
    given = dict(instructions())
    serve = [*json.loads(given["ENTRYPOINT"]), *json.loads(given["CMD"])]
    probe = json.loads(given["HEALTHCHECK"].partition("CMD ")[2])
    serves_and_is_healthy(start, serve, [probe], {"PUBSUB_KEY_FILE": str(key)})


def test_the_image_is_one_stage_nobodys_and_has_no_secret() -> None:
    given = instructions()
    assert [word for word, _ in given].count("FROM") == 1
    users = [rest for word, rest in given if word == "USER"]
    assert users
    assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users)
    assert not {"ENV", "ARG", "COPY", "ADD"} & {word for word, _ in given}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (asked,) = re.findall(r"\[(\w+)\]\"", dict(given)["RUN"])
    assert asked in extras


def test_a_linter_has_nothing_to_say_of_the_image() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (extra pubsubd[deploy])")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stdout


# --- Kubernetes -------------------------------------------------------------------------------


def objects() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="extra pubsubd[deploy]")
    return [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]


def pods() -> list[dict[str, Any]]:
    return [each["spec"]["template"] for each in objects() if "template" in each["spec"]]


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("version", ["1.27", "1.32", "1.36"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="extra pubsubd[deploy]").validate
    kinds = set()
    for each in objects():
        validate(each, version, strict=True)
        kinds.add(each["kind"])
    assert kinds == {
        *("Service", "StatefulSet", "Deployment"),
        *("NetworkPolicy", "PodDisruptionBudget"),
    }


def test_what_the_manifests_name_is_in_them() -> None:
    found = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in objects()}
    service = found["Service", "pubsubd"]
    coordinators = found["StatefulSet", "pubsubd"]
    labels = coordinators["template"]["metadata"]["labels"]
    assert service["clusterIP"] == "None"
    assert coordinators["serviceName"] == "pubsubd"
    for selector in (
        service["selector"],
        coordinators["selector"]["matchLabels"],
        found["PodDisruptionBudget", "pubsubd"]["selector"]["matchLabels"],
        found["NetworkPolicy", "pubsubd-coordinator"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    ports = {p["name"]: p["containerPort"] for p in container(coordinators["template"])["ports"]}
    ((port,),) = [service["ports"]]
    assert ports[port["targetPort"]] == port["port"] == 7700
    peers = found["Deployment", "ticker"]["template"]
    (policy,) = found["NetworkPolicy", "pubsubd-coordinator"]["ingress"]
    for allowed in policy["from"]:
        assert allowed["podSelector"]["matchLabels"].items() <= peers["metadata"]["labels"].items()
    assert all(p["port"] in ports for p in policy["ports"])


def test_the_pods_are_restricted_and_have_the_key_from_a_secret() -> None:
    for template in pods():
        pod, inside = template["spec"], container(template)
        assert inside["image"] == f"pubsubd:{__version__}"
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inside["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        (volume,) = pod["volumes"]
        assert volume["secret"] == {"secretName": "pubsubd-key", "defaultMode": 0o440}
        assert "fsGroup" in pod["securityContext"]  # or the key could not be read
        (mount,) = inside["volumeMounts"]
        assert "subPath" not in mount
        env = {each["name"]: each.get("value") for each in inside["env"]}
        assert env["PUBSUB_KEY_FILE"] == f"{mount['mountPath']}/key"


def test_the_pods_of_coordinators_serve_and_their_probes_find_them(start: Start, key: Path) -> None:
    (inside,) = (container(each) for each in pods() if "args" in container(each))
    probes = [inside[kind]["exec"]["command"] for kind in ("readinessProbe", "livenessProbe")]
    for kind, probe in zip(("readinessProbe", "livenessProbe"), probes, strict=True):
        assert float(probe[-1]) < inside[kind]["timeoutSeconds"]  # it says why before it is killed
    serves_and_is_healthy(
        start, ["pubsubd", *inside["args"]], probes, {"PUBSUB_KEY_FILE": str(key)}
    )


def test_the_example_of_a_peer_publishes_at_the_address_of_its_pod(start: Start, key: Path) -> None:
    (inside,) = (container(each) for each in pods() if "command" in container(each))
    env = {each["name"]: each for each in inside["env"]}
    assert env["PUBSUB_ADVERTISE"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert env["PUBSUB_COORDINATOR"]["value"] == "pubsubd:7700"
    given = {"PUBSUB_KEY_FILE": str(key)}
    daemon = start("pubsubd", "coordinator", "--port", "0", **given)
    where = read_until(daemon, "pubsubd: coordinator on ").split()[-1]
    start(*inside["command"], coordinator=where, PUBSUB_ADVERTISE="127.0.0.5", **given)
    with Peer(where, key_file=str(key)) as peer:
        value = BlockingSub("ticks", peer=peer).get(timeout=LONG)
    assert value["who"] == "127.0.0.5"


# --- Slurm ------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
# Three tasks at once, each on a node of its own; the worst of their exit codes.
while [[ "$1" == --* ]]; do shift; done
for rank in 0 1 2; do SLURM_PROCID=$rank "$@" & tasks+=($!); done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
WORKER = """
import os
from pubsub import Pub, Sub
rank = int(os.environ["SLURM_PROCID"])
with Sub("ranks") as sub, Pub("ranks") as pub, Pub("done") as done, Sub("done") as all_done:
    pub.wait_for_subscribers(3, timeout=30)
    pub.put(rank)
    ranks = {sub.get(timeout=30) for _ in range(3)}
    done.wait_for_subscribers(3, timeout=30)
    done.put(rank)
    for _ in range(3):
        all_done.get(timeout=30)
# One write for each line: that of two ranks through one pipe does not mix.
os.write(1, f"rank {rank} has heard {sorted(ranks)}\\n".encode())
"""


def sbatch(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What Slurm does on the first node, with three tasks."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {
        "srun": SRUN,
        "pubsubd": f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m pubsub.cli.pubsubd "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "SLURM_JOB_ID": "17",
    }
    return subprocess.run(
        [str(SBATCH), *command],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def test_a_job_has_a_coordinator_and_a_key_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="a key needs pubsubd[tls] between machines")
    done = sbatch(tmp_path, sys.executable, "-c", WORKER)
    assert done.returncode == 0, done.stdout + done.stderr
    where, *said = done.stdout.splitlines()
    assert sorted(said) == [f"rank {rank} has heard [0, 1, 2]" for rank in range(3)]
    key = tmp_path / "home/.config/pubsubd/slurm.key"
    assert where.endswith(f"PUBSUB_KEY_FILE={key}")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    address = where.split()[0].removeprefix("PUBSUB_COORDINATOR=")
    assert execute("pubsubd", "health", address, "--key-file", str(key)).code == 1, "it has ended"
    # the next job has the same key, and the exit code of a task is that of the job
    before = key.read_bytes()
    done = sbatch(tmp_path, "bash", "-c", "exit 3")
    assert done.returncode == 3
    assert key.read_bytes() == before


def test_a_job_whose_coordinator_cannot_start_ends_and_says_why(tmp_path: Path) -> None:
    bad = tmp_path / "home/.config/pubsubd/slurm.key"
    bad.parent.mkdir(parents=True)
    bad.write_text("no key\n")
    bad.chmod(0o600)
    done = sbatch(tmp_path, "echo", "a task")
    assert done.returncode == 1
    assert "pubsubd: " in done.stderr
    assert "a task" not in done.stdout


# --- Prometheus and Grafana -------------------------------------------------------------------

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: the package prometheus)",
)
IN_QUERIES = {*PROCESS, "job", "instance"}
"""Labels that queries may have beside those of a metric."""


def checked_by_promtool(*args: str | Path, given: bytes = b"", cwd: Path = PROMETHEUS) -> None:
    done = subprocess.run(
        ["promtool", *map(str, args)], input=given, capture_output=True, timeout=LONG, cwd=cwd
    )
    assert (done.returncode, done.stderr) == (0, b""), (done.stdout + done.stderr).decode()


def queries() -> list[str]:
    """Those of the dashboard, with what Grafana puts in."""
    board = json.loads(GRAFANA.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    for variable, value in {"$__rate_interval": "1m", "$__range": "1h"}.items():
        found = [each.replace(variable, value) for each in found]
    return [re.sub(r"\$(job|topic)\b", ".*", each) for each in found]


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="extra pubsubd[deploy]")
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


@promtool
@pytest.mark.parametrize("many", [False, True])
def test_promtool_has_nothing_to_say_of_the_metrics(many: bool) -> None:
    pubs = (PubStats(topic="t", put=1, subscribers=(SubscriberStats(state="attached"),)),)
    told = Stats("x", "app", 7, "h", pubs=pubs, subs=(SubStats(pattern="t"),))
    text = exposition([told])
    if not many:
        registry = CollectorRegistry()
        with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
            register(registry, peer)
            peer.pub("t").put(1)
            text = generate_latest(registry)
    checked_by_promtool("check", "metrics", given=text)


@promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    checked_by_promtool("check", "config", "prometheus.yml")
    checked_by_promtool("check", "rules", RULES.name)


@promtool
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    checked_by_promtool("test", "rules", RULES.with_suffix(".test.yml").name)


@promtool
def test_prometheus_understands_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    listed = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries())]
    path = tmp_path / "queries.json"  # YAML, too
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": listed}]}))
    checked_by_promtool("check", "rules", path, cwd=tmp_path)


def test_each_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    yaml = pytest.importorskip("yaml", reason="extra pubsubd[deploy]")
    tests = yaml.safe_load(RULES.with_suffix(".test.yml").read_text())["tests"]
    tried = [each for test in tests for each in test["alert_rule_test"]]
    named = {rule["alert"] for rule in rules()}
    assert {each["alertname"] for each in tried if each.get("exp_alerts")} == named
    assert {each["alertname"] for each in tried if not each.get("exp_alerts")} == named


def test_rules_and_queries_ask_for_metrics_and_labels_that_exist() -> None:
    known = {metric.name: set(metric.labels) for metric in METRICS}
    board = json.loads(GRAFANA.read_text())
    asked = [*queries(), *(rule["expr"] for rule in rules())]
    tested = RULES.with_suffix(".test.yml").read_text()
    asked += re.findall(r"'(pubsub_\w+\{[^']*\})'", tested)
    for query in asked:
        names = set(re.findall(r"\bpubsub_\w+", query))
        assert names
        assert names <= set(known), query
        labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
        for inside in re.findall(r"\bby \(([^)]*)\)", query):
            labels |= set(inside.split(", "))
        for name in names:
            assert labels <= known[name] | IN_QUERIES, query
    for rule in rules():
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        for name in re.findall(r"\bpubsub_\w+", rule["expr"]):
            assert named <= known[name] | IN_QUERIES, rule["alert"]
    variables = {each["name"]: each for each in board["templating"]["list"]}
    for query in (variables["job"]["query"]["query"], variables["topic"]["query"]["query"]):
        assert set(re.findall(r"\bpubsub_[a-z_]+", query)) <= set(known)


def test_the_page_says_how_many_alerts_there_are() -> None:
    assert len(rules()) == 12
    assert "has twelve that" in (ROOT / "docs/deploy.md").read_text()


def test_the_panels_of_the_dashboard_fill_it_and_lie_on_none() -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert {x for x, _ in taken} == set(range(24))
    assert len(taken) == 24 * (max(y for _, y in taken) + 1)
    for panel in panels:
        assert panel["type"] == "row" or panel["description"], panel["title"]


# --- the page ---------------------------------------------------------------------------------


def test_the_commands_of_the_page_have_the_options_that_it_gives_them() -> None:
    text = (ROOT / "docs/deploy.md").read_text().replace("\\\n", " ")
    code = re.findall(r"^```\w*\n(.*?)^```$|`([^`]+)`", text, re.M | re.S)
    tried = 0
    for name, words in re.findall(
        r"(?<![\w./:-])(?=(pubsubd?) ([a-z][^\n`]*))",
        "\n".join(block or span for block, span in code),
    ):
        command: click.Command = {"pubsub": pubsub, "pubsubd": pubsubd}[name]
        rest = words.split()
        while rest and isinstance(command, click.Group) and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        if command in (pubsub, pubsubd):  # a name, as in `kubectl -n pubsubd get`
            continue
        known = {option for param in command.params for option in param.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words
        tried += 1
    assert tried >= 10
