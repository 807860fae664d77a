"""The worlds, the checks and the machinery of `make bench-reflect`. The model here is SIMULATED: it plays by rule."""

import json
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import RunnableLambda

from benchmarks.reflecting import __main__ as command
from benchmarks.reflecting.agent import asked
from benchmarks.reflecting.arms import ARMS, LANGMEM, NONE, OURS, PLAYBOOK, RAW, RULES, Cell, Result, Size
from benchmarks.reflecting.judge import judged, stated
from benchmarks.reflecting.players import Meter, Players, served
from benchmarks.reflecting.remembered import Answers
from benchmarks.reflecting.rivals import sentences
from benchmarks.reflecting.scripted import LABEL, Scripted
from benchmarks.reflecting.table import report
from benchmarks.reflecting.world import ACCEPTED, HELD_OUT, PRACTICE
from benchmarks.reflecting.worlds import HELD_OUT_WORLDS, TUNING, WORLDS

SEEDS = (1, 2, 3, 4)
SIZE = Size(practice=4, held_out=3)
PLACES = [(name, seed) for name in WORLDS for seed in SEEDS]


def test_eight_worlds_two_held_out():
    assert len(WORLDS) == 8
    assert set(HELD_OUT_WORLDS) == {"access", "routing"}
    assert not set(HELD_OUT_WORLDS) & set(TUNING)
    given = command.parse(["--tuning-only"])
    assert {world for world, _, _ in command.cells(given)} == set(TUNING)


@pytest.mark.parametrize(("name", "seed"), PLACES)
def test_rules_are_four_to_six_and_independent(name, seed):
    world = WORLDS[name](seed)
    assert 4 <= len(world.rules) <= 6
    assert len({rule.name for rule in world.rules}) == len(world.rules)
    seen = set()
    for task in world.tasks(PRACTICE, 6, seed) + world.tasks(HELD_OUT, 6, seed):
        right = world.right(task.facts)
        everything = world.obedient(task.facts, world.rules)
        assert world.answer(world.broken(task.facts, everything)) == ACCEPTED
        assert set(everything) <= set(world.fields)
        for rule in world.rules:
            others = [other for other in world.rules if other is not rule]
            causes = world.broken(task.facts, world.obedient(task.facts, others))
            assert [cause.name for cause in causes] == ([rule.name] if rule.name in right else [])
            if causes:
                assert rule.text in world.answer(causes)
                seen.add(rule.name)
    assert seen == {rule.name for rule in world.rules}  # a batch shows every rule


@pytest.mark.parametrize(("name", "seed"), PLACES)
def test_the_practice_shows_every_rule_and_held_out_tasks_are_new(name, seed):
    world = WORLDS[name](seed)
    practice, held_out = world.tasks(PRACTICE, 8, seed), world.tasks(HELD_OUT, 8, seed)
    assert {rule for task in practice for rule in world.right(task.facts)} == {rule.name for rule in world.rules}
    assert not {task.text for task in practice} & {task.text for task in held_out}
    assert practice == world.tasks(PRACTICE, 8, seed)
    assert all(value in task.text for task in practice for value in task.own)


@pytest.mark.parametrize(("name", "seed"), PLACES)
def test_a_rules_own_words_state_it_and_no_other(name, seed):
    world = WORLDS[name](seed)
    for rule in world.rules:
        states = {other.name for other in world.rules if other.stated_in(rule.text)}
        silent = name == "letters" and rule.name == "count"  # its cause is said nowhere, only shown
        assert states == (set() if silent else {rule.name})


def test_statements_are_found_in_other_words_and_not_where_they_are_denied():
    world = WORLDS["shipping"](1)
    rules = {rule.name: rule for rule in world.rules}
    zone, carrier, weight = rules["zone glass"].codes[0], rules["carrier"].codes[0], rules["weight"]
    assert weight.stated_in("When giving a parcel's weight: convert kilograms to grams")
    assert not weight.stated_in("When giving a parcel's weight: use kg, not grams")
    assert not weight.stated_in("Check the weight")
    assert not weight.stated_in("write 5 grams")  # of what?
    assert rules["zone glass"].stated_in(f"choosing the zone for glassware: use {zone.lower()}")
    assert not rules["zone glass"].stated_in(f"choosing the zone: use {zone}")  # for everything?
    assert not rules["zone glass"].stated_in(f"for glass do not use {zone}")
    assert not rules["zone glass"].stated_in(f"for glass use {zone}9")
    assert rules["carrier"].stated_in(f"the carrier of a label: {carrier}")
    assert not rules["carrier"].stated_in(f"the carrier of a label: DHL instead of {carrier}")


@pytest.mark.parametrize(
    ("name", "rule", "good", "bad"),
    [
        ("bookings", "start", "writing the start of a booking: use hhHmm with an h", "start: use 24-hour time"),
        ("triage", "subject", "filling in the subject: use upper case", "subject: keep it short"),
        ("recipes", "time", "giving the time: use minutes", "giving the time: use hours, not minutes"),
        ("recipes", "flour", "weighing flour: grams, 30 per ounce", "weighing flour: use grams"),
        ("letters", "count", "counting letters: use count_letters first", "counting letters: be careful"),
        (
            "letters",
            "count",
            "counting: set tool to count_letters",
            "the room of a count_letters tool call: use 1",
        ),
        (
            "letters",
            "count",
            "counting letters: always use the tool",
            "the count of a tool call: use a count of 1",
        ),
        ("letters", "count", "counting: spell the word out", "counting: do not use the tool"),
        ("queries", "order_by", "order_by: sort on created_at", "order_by: sort on date"),
        ("access", "valid", "valid is written in hours", "valid is written in days"),
        ("routing", "ticket", "end the ticket's number with /IT", "copy the ticket's number"),
    ],
)
def test_statements_of_values_that_are_made(name, rule, good, bad):
    (found,) = [r for r in WORLDS[name](1).rules if r.name == rule]
    assert found.stated_in(good)
    assert not found.stated_in(bad)


def test_kinds_of_lessons():
    world = WORLDS["shipping"](1)
    rules = {rule.name: rule for rule in world.rules}
    tasks = world.tasks(PRACTICE, 4, 1)
    zone = rules["zone glass"]
    order = tasks[0].facts["order"]
    texts = [zone.text, f"labels: {zone.text}", f"set the zone to {zone.codes[0]}", "weight must be 'heavy'"]
    texts += [f"order {order}: weight must be in grams", "always double-check the form", rules["weight"].text]
    verdicts = judged(world, texts, tasks)
    kinds = ["useful", "repeat", "wrong", "wrong", "instance", "junk", "useful"]
    assert [verdict.kind for verdict in verdicts] == kinds
    assert stated(world, verdicts) == pytest.approx(2 / 6)
    assert judged(world, [], tasks) == []


def test_a_rule_for_all_tasks_under_a_condition_is_wrong():
    world = WORLDS["shipping"](1)
    (carrier,) = [rule for rule in world.rules if rule.name == "carrier"]
    (zone,) = [rule for rule in world.rules if rule.name == "zone glass"]
    narrow, both, apart = (
        f"{carrier.text} for glass",
        f"for glass and for food: {carrier.text}",
        f"{zone.text}; {carrier.text}",
    )
    verdicts = judged(world, [narrow, both, apart], ())
    assert [(verdict.kind, sorted(verdict.states)) for verdict in verdicts] == [
        ("wrong", []),
        ("useful", ["carrier"]),
        ("useful", ["carrier", "zone glass"]),
    ]


def players(name, seed, cache=None):
    world = WORLDS[name](seed)
    known = world.tasks(PRACTICE, SIZE.practice, seed) + world.tasks(HELD_OUT, SIZE.held_out, seed)
    meter = Meter()
    agent = Scripted(world=world, known=known, cache=cache)
    reflector = agent.model_copy(update={"callbacks": [meter]})
    settings = {"embeddings": "hashing", "store": "exact"}
    return Players(label=LABEL, agent=agent, reflector=reflector, meter=meter, answers=cache, settings=settings)


def test_all_arms_end_to_end_with_a_simulated_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "langmem", None)  # as where it is not installed
    play = players("shipping", 1)
    assert play.label.startswith("SIMULATED")
    cell = Cell("shipping", 1, play, SIZE)
    results = [cell.run(arm) for arm in ARMS]
    by = {result.arm: result for result in results}
    assert (by[NONE].fields, by[NONE].stated, by[NONE].tokens) == (0, 0, 0)
    assert (by[RULES].fields, by[RULES].tasks, by[RULES].stated) == (1, 1, 1)
    assert by[RAW].tokens == 0
    assert {result.shown for result in results if not result.left_out} == {1}
    assert by[LANGMEM].left_out
    for arm in ("ours", "ours, all shown", "ours, per episode", PLAYBOOK):
        assert (arm, by[arm].stated) == (arm, 1)
        assert by[arm].tokens > 0
    assert by["ours"].reflections == 1
    assert by["ours, per episode"].reflections == SIZE.practice
    assert by["ours, all shown"].tasks == 1
    wanted = [("shipping", 1, arm) for arm in ARMS] + [("letters", 1, NONE)]
    text = report(results, wanted)
    assert "PARTIAL" in text
    assert "letters, seed 1: no lessons" in text
    assert "LangMem optimizer in shipping, seed 1: left out: langmem is not installed" in text


def test_without_rewards_a_world_that_answers_only_with_them_teaches_nothing():
    cell = Cell("routing", 1, players("routing", 1), SIZE)
    assert cell.run("ours, rewards hidden").verdicts == []
    assert cell.run(OURS).stated == 1


def test_a_killed_run_goes_on_from_its_remembered_answers(tmp_path):
    first = players("triage", 1, Answers(tmp_path, "simulated"))
    before = Cell("triage", 1, first, SIZE).run(OURS)
    assert first.answers.asked > 0
    again = players("triage", 1, Answers(tmp_path, "simulated"))
    after = Cell("triage", 1, again, SIZE).run(OURS)
    assert again.answers.asked == 0
    assert again.answers.known > 0
    assert (after.stated, after.fields, after.tokens) == (before.stated, before.fields, before.tokens)
    fresh = players("triage", 1, Answers(tmp_path, "simulated", fresh=True))
    Cell("triage", 1, fresh, SIZE).run(NONE)
    assert fresh.answers.asked > 0


def test_an_answer_is_remembered_whole_and_by_model(tmp_path):
    answers = Answers(tmp_path, "one")
    message = AIMessage("hello", usage_metadata={"input_tokens": 3, "output_tokens": 1, "total_tokens": 4})
    answers.update("prompt", '{"at": "http://127.0.0.1:1"}---[]', [ChatGeneration(message=message)])
    (found,) = answers.lookup("prompt", '{"at": "http://127.0.0.1:2"}---[]')
    assert (found.message.text, found.message.usage_metadata["total_tokens"]) == ("hello", 4)
    assert answers.lookup("prompt", '{"at": "http://127.0.0.1:2"}---[1]') is None
    assert Answers(tmp_path, "other").lookup("prompt", '{"at": "http://127.0.0.1:1"}---[]') is None
    assert not list(tmp_path.rglob("*.partial"))


def test_a_budget_of_minutes_ends_with_a_table_that_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "served", lambda *_, **__: nullcontext(players("shipping", 1)))
    call = ["--worlds", "shipping", "--seeds", "1", "--arms", "none", "ours", "--practice", "4", "--tasks", "3"]
    call += ["--cache", str(tmp_path)]
    assert command.main([*call, "--budget-minutes", "0"]) == 0
    said = capsys.readouterr().out
    assert "Run: 0 of 2 cells. THIS TABLE IS PARTIAL" in said
    assert command.main(call) == 0
    said = capsys.readouterr().out
    assert "Run: 2 of 2 cells." in said
    assert LABEL in said
    kept = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [result["arm"] for result in kept["results"]] == ["no lessons", "ours"]


def test_worlds_side_by_side_are_what_they_are_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "served", lambda *_, **__: nullcontext(players("shipping", 1)))
    call = ["--worlds", "shipping", "--seeds", "1", "2", "--arms", "none", "ours", "--practice", "4", "--tasks", "2"]

    def results(folder: str, *more: str) -> list[dict[str, object]]:
        assert command.main([*call, "--cache", str(tmp_path / folder), *more]) == 0
        kept = json.loads((tmp_path / folder / "results.json").read_text("utf-8"))["results"]
        return [{name: value for name, value in result.items() if name != "seconds"} for result in kept]

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert results("two", "--at-once", "2") == results("one")  # this player knows the first seed's tasks only
    assert len(results("one")) == 2


def test_a_cell_that_fails_is_missing_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "served", lambda *_, **__: nullcontext(players("letters", 1)))
    call = ["--worlds", "shipping", "letters", "--seeds", "1", "--arms", "none", "--practice", "2", "--tasks", "2"]
    assert command.main([*call, "--cache", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "shipping, seed 1, no lessons: failed: " in said
    assert "Run: 1 of 2 cells. THIS TABLE IS PARTIAL" in said


class EndlessError(Exception):
    """As openai's client says that the limit of tokens was reached."""

    completion = SimpleNamespace(
        choices=[SimpleNamespace(message=SimpleNamespace(content='{"weight": 1'))],
        usage=SimpleNamespace(prompt_tokens=1, completion_tokens=1),
    )


def test_a_form_without_an_end_is_an_empty_form():
    def endless(_):
        raise EndlessError

    def broken(_):
        raise RuntimeError("the server is gone")

    assert asked(RunnableLambda(endless), []) is None
    with pytest.raises(RuntimeError, match="gone"):
        asked(RunnableLambda(broken), [])


def test_a_rival_that_fails_has_learned_nothing_and_says_so(monkeypatch):
    from benchmarks.reflecting import arms

    monkeypatch.setattr(arms, "playbook", lambda *_: 1 / 0)
    result = Cell("queries", 1, players("queries", 1), SIZE).run(PLAYBOOK)
    assert (result.problem, result.verdicts, result.left_out) == ("ZeroDivisionError: division by zero", [], False)


def test_langmem_gets_the_same_rollouts_where_it_is_installed():
    pytest.importorskip("langmem", reason="an extra for benchmarks only: pip install -e '.[bench]'")
    result = Cell("queries", 1, players("queries", 1), SIZE).run(LANGMEM)
    assert (result.problem, result.stated) == ("", 1)


def test_what_a_prompt_has_more_than_another():
    assert sentences("You act. Be kind.\n- Use X.\n", "You act.") == ["Be kind.", "Use X."]


def test_where_we_lose_is_said():
    ours = Result(world="queries", seed=1, arm=OURS, stated=0.5, fields=0.5, tasks=0.25)
    raw = Result(world="queries", seed=1, arm=RAW, stated=1.0, fields=0.25, tasks=0.5)
    text = report([ours, raw], [])
    assert "raw rejections, stated: better in queries; over all +50 points" in text
    assert "raw rejections, tasks: better in queries; over all +25 points" in text
    assert "raw rejections, fields" not in text
    assert "nowhere" in report([ours], [])


class Playing(BaseHTTPRequestHandler):
    """A server of the OpenAI protocol with a scripted model behind it. SIMULATED."""

    scripted: Scripted

    def do_POST(self):
        asked_for = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = {"system": SystemMessage, "user": HumanMessage}
        messages = [said.get(m["role"], AIMessage)(m["content"] or "") for m in asked_for["messages"]]
        title = asked_for["response_format"]["json_schema"]["name"]
        text = json.dumps(self.scripted._answer(title, messages))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        pass


def test_a_server_of_the_openai_protocol_is_asked_once(tmp_path):
    pytest.importorskip("langchain_openai", reason="the extra `bench` or `dev`")
    Playing.scripted = players("shipping", 1).agent
    counts = []
    for _ in range(2):  # the second time at another address
        with ThreadingHTTPServer(("127.0.0.1", 0), Playing) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with served(f"http://127.0.0.1:{server.server_port}/v1", "m", "", tmp_path, fresh=False) as play:
                settings = {"embeddings": "hashing", "store": "exact"}
                cell = Cell("shipping", 1, replace(play, settings=settings), SIZE)
                results = [cell.run(arm) for arm in (OURS, PLAYBOOK, LANGMEM)]
            server.shutdown()
            thread.join()
        counts.append(play.answers.asked)
        assert {(r.stated, r.problem, r.tokens > 0) for r in results if not r.left_out} == {(1, "", True)}
    assert counts[0] > 0
    assert counts[1] == 0
