"""The sandbox as its caller sees it: calls, answers, one namespace, texts, limits, and processes that end."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.code_as_policies import sandbox as module
from apt_bench.policies.code_as_policies import wall
from apt_bench.policies.code_as_policies.sandbox import Call, Ended, Limits, Sandbox
from apt_bench.policies.code_as_policies.sandbox_child import AVAILABLE, Output
from apt_bench.wire.arrays import WireError
from tests.policies.cap.blocks import FUNCTIONS, run


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(FUNCTIONS) as one:
        yield one


def test_a_call_arrives_with_its_arguments_and_its_answer_returns(sandbox: Sandbox) -> None:
    sandbox.start(
        "p = np.arange(6.0).reshape(2, 3)\nprint(move(p, 'cup', [1, None], (2.5, True), speed={'a': p[0]}))"
    )
    call = sandbox.next()
    assert isinstance(call, Call)
    assert call.name == "move"
    np.testing.assert_array_equal(call.args[0], np.arange(6.0).reshape(2, 3))
    assert call.args[1:] == ("cup", [1, None], [2.5, True])
    np.testing.assert_array_equal(call.kwargs["speed"]["a"], [0, 1, 2])
    call.args[0][0] = 7  # the caller owns it
    sandbox.answer([np.float32(0.5), "ok"])
    assert sandbox.next() == Ended("[0.5, 'ok']\n", "")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3)),
        np.array(3),
        np.array([True, False]),
        np.arange(5, dtype=np.uint8),
        np.arange(4, dtype=">i2"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::2],
        np.array([np.nan, np.inf]),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_arrays_pass_unchanged_in_both_directions(sandbox: Sandbox, value: np.ndarray) -> None:
    seen: list[Call] = []

    def reply(call: Call) -> np.ndarray:
        seen.append(call)
        return value

    assert run(sandbox, "x = look()\nx += 0 if x.dtype != bool else False\nlook(x)", reply) == Ended("", "")
    back = seen[1].args[0]
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    np.testing.assert_array_equal(back, value)


def test_numpy_numbers_and_text_arrive_as_plain_values(sandbox: Sandbox) -> None:
    sandbox.start("look(np.float64(1.5), np.int32(2), np.bool_(True), np.float32(0.25), 'ä', b'x', 2**60)")
    call = sandbox.next()
    assert call == Call("look", (1.5, 2, True, 0.25, "ä", b"x", 2**60), {})
    sandbox.close()


@pytest.mark.parametrize(
    "argument",
    [
        "np.zeros(1 << 20)",
        "object()",
        "1j",
        "{1, 2}",
        "2**70",
        "np.array(['a'])",
        "np.longdouble(1)",
        "look",
        "'\\ud800'",
    ],
)
def test_an_argument_that_cannot_be_sent_raises_in_the_code(sandbox: Sandbox, argument: str) -> None:
    ended = run(sandbox, f"try: move({argument})\nexcept TypeError as e: print('refused', e)")
    assert ended.stdout.startswith("refused move: ")
    assert ended.stopped is None


def test_an_error_of_the_function_is_an_exception_in_the_code(sandbox: Sandbox) -> None:
    sandbox.start("try:\n    move(1)\nexcept ApiError as e:\n    print('caught', e)\nmove(2)")
    for _ in range(2):
        assert isinstance(sandbox.next(), Call)
        sandbox.answer(error="the pose cannot be reached")
    ended = sandbox.next()
    assert isinstance(ended, Ended)
    assert ended.stdout == "caught the pose cannot be reached\n"
    assert ended.stderr.endswith("ApiError: the pose cannot be reached\n")


def test_names_stay_from_block_to_block_and_given_names_are_restored(sandbox: Sandbox) -> None:
    run(sandbox, "import json\ndef f(x): return x + 1\na = f(1)\nlook = np = math = None\nprint = len = 3")
    ended = run(sandbox, "look()\nprint(a, f(a), json.dumps([1]), np.pi == math.pi, ApiError.__name__)")
    assert (
        ended.stderr.count("TypeError") == 1
    )  # print is the code's own name; the robot's functions are restored
    assert run(sandbox, "del print\nprint(a, f(a), np.pi == math.pi)").stdout == "2 3 True\n"
    run(sandbox, "import builtins\nbuiltins.print = builtins.len = None")
    assert run(sandbox, "print(len([1]))") == Ended("1\n", "")


def test_a_traceback_shows_the_codes_lines_only(sandbox: Sandbox) -> None:
    sandbox.close()
    run(sandbox, "def f(n):\n    return np.linalg.inv(np.zeros((n, n)))")
    stderr = run(sandbox, "f(2)").stderr
    assert '  File "<block 2>", line 1, in <module>\n    f(2)' in stderr
    assert '  File "<block 1>", line 2, in f\n    return np.linalg.inv' in stderr
    assert stderr.endswith("LinAlgError: Singular matrix\n")
    assert "site-packages" not in stderr
    assert "sandbox_child" not in stderr
    assert "SyntaxError" in run(sandbox, "def :").stderr
    chained = run(sandbox, "try: look(object())\nexcept TypeError: 1 / 0").stderr
    assert chained.count("Traceback") == 2
    assert "sandbox_child" not in chained


def test_what_is_printed_is_kept_from_its_beginning_and_its_end(sandbox: Sandbox) -> None:
    ended = run(sandbox, "import sys\nfor i in range(100_000): print(i)\nprint('warn', file=sys.stderr)")
    assert ended.stdout.startswith("0\n1\n2\n")
    assert ended.stdout.endswith("99998\n99999\n")
    assert "characters omitted" in ended.stdout
    assert len(ended.stdout) < 20_100
    assert ended.stderr == "warn\n"


def test_output_counts_what_it_omits() -> None:
    out = Output(10)
    for text in ("abc", "defgh", "", "ijklm", "nopqrstuvw"):
        assert out.write(text) == len(text)
    assert out.take() == "abcde\n[... 13 characters omitted ...]\nstuvw"
    out.write("x")
    assert out.take() == "x"


def test_the_listed_modules_can_be_imported_and_others_name_the_list(sandbox: Sandbox) -> None:
    assert run(sandbox, "\n".join(f"import {one}" for one in AVAILABLE.split(", "))) == Ended("", "")
    rotation = "from scipy.spatial.transform import Rotation as R\nprint(R.from_euler('z', 90, degrees=True).as_quat())"
    assert run(sandbox, rotation).stdout == "[0.         0.         0.70710678 0.70710678]\n"
    stderr = run(sandbox, "import cv2").stderr
    assert "No module named 'cv2' here. These can be imported: abc, " in stderr


def test_hash_seeds_and_random_numbers_are_the_same_in_each_child(sandbox: Sandbox) -> None:
    code = "import random\nprint({'a', 'b', 'c', 'd', 'e'}, random.random(), np.random.rand())"
    texts = []
    for _ in range(2):
        sandbox.close()
        texts.append(run(sandbox, code).stdout)
    assert texts[0] == texts[1] != ""


def test_time_of_the_parent_is_not_counted_and_the_child_does_not_run_in_it() -> None:
    with Sandbox(FUNCTIONS, limits=Limits(seconds=1.0)) as sandbox:
        sandbox.start("import time\nstart = time.process_time()\nlook()\nlook()\nprint('done')")
        for _ in range(2):
            assert isinstance(sandbox.next(), Call)
            wait_for_state(child_of(sandbox), "T")  # suspended
            time.sleep(0.7)
            sandbox.answer()
        assert sandbox.next() == Ended("done\n", "")
        wait_for_state(child_of(sandbox), "T")


def test_a_large_answer_arrives(sandbox: Sandbox) -> None:
    image = np.random.default_rng(0).normal(size=(512, 512, 3))
    assert run(sandbox, "print(look().sum())", lambda call: image).stdout == f"{image.sum()}\n"


def test_what_was_printed_before_the_last_call_survives_a_stop() -> None:
    with Sandbox(FUNCTIONS, limits=Limits(seconds=0.5)) as sandbox:
        ended = run(sandbox, "print('before')\nlook()\nprint('after')\nwhile True: pass")
        assert ended.stdout == "before\n"
        assert ended.stopped is not None
        assert "it computed for more than 0.5 s" in ended.stopped
        assert "starts with an empty namespace" in ended.stopped
        assert run(sandbox, "x = 1\nprint(x)") == Ended("1\n", "")


def test_a_block_that_is_given_up_takes_its_namespace_with_it(sandbox: Sandbox) -> None:
    sandbox.start("x = 1\nlook()")
    assert isinstance(sandbox.next(), Call)
    assert "NameError" in run(sandbox, "print(x)").stderr


def test_misuse_by_the_caller_raises(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    with pytest.raises(RuntimeError, match="call start first"):
        sandbox.next()
    with pytest.raises(RuntimeError, match="no call waits"):
        sandbox.answer(1)
    sandbox.start("look()")
    sandbox.next()
    with pytest.raises(WireError):
        sandbox.answer(object())


def test_limits_on_the_calls_and_the_traffic_of_a_block() -> None:
    limits = Limits(seconds=5, calls=20, traffic=3 << 20)
    with Sandbox(FUNCTIONS, limits=limits) as sandbox:
        assert run(sandbox, "for i in range(20): look()") == Ended("", "")
        assert "more than 20 times" in str(run(sandbox, "for i in range(21): look()").stopped)
        assert "more than 3145728 bytes" in str(
            run(sandbox, "for i in range(7): look(np.zeros(1 << 16))").stopped
        )


def test_the_wall_says_what_it_is_made_of(sandbox: Sandbox) -> None:
    assert sandbox.wall.startswith(
        f"a seccomp filter that allows {len(wall.ALLOWED)} system calls, resource limits"
    )
    assert ("user nobody" in sandbox.wall) == (os.getuid() == 0)
    assert sandbox.wall.endswith(".")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_without_a_wall_the_code_runs_only_if_the_user_insists(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(wall.sys, "platform", system)
    monkeypatch.setattr(wall.platform, "machine", lambda: machine)
    with pytest.raises(
        UserError, match=rf"no sandbox .*{system if system != 'linux' else machine}.*unsafe=true"
    ):
        Sandbox(FUNCTIONS)
    with Sandbox(FUNCTIONS, unsafe=True) as sandbox:
        assert sandbox.wall.startswith("none (unsafe). The process is restricted only by resource limits")
        assert run(sandbox, "print(1)") == Ended("1\n", "")
        assert "OSError" in run(sandbox, "open('/dev/null')").stderr  # no descriptor is left
        assert run(sandbox, "import os\nprint(os.environ.get('HOME'))") == Ended("None\n", "")


def test_a_wall_that_the_kernel_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    refusing = module.CHILD.read_text().replace(
        "        done = wall.close_in(",
        "        raise OSError('the kernel refused')\n        done = wall.close_in(",
        1,
    )
    assert refusing.count("the kernel refused") == 1
    replace_child(monkeypatch, tmp_path, refusing)
    with pytest.raises(UserError, match=r"no sandbox .* the kernel refused"):
        Sandbox(FUNCTIONS)


def test_a_child_that_does_not_start_is_an_error_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    replace_child(monkeypatch, tmp_path, "raise ImportError('no numpy')")
    with pytest.raises(UserError, match=r"did not start: it exited with code 1. .*ImportError: no numpy"):
        Sandbox(FUNCTIONS)
    replace_child(monkeypatch, tmp_path, "import time; time.sleep(60)")
    with pytest.raises(UserError, match=r"did not start: it took more than 0.5 s"):
        Sandbox(FUNCTIONS, limits=Limits(start_seconds=0.5))


def test_nothing_is_left_of_many_sandboxes() -> None:
    descriptors, before = os.listdir("/proc/self/fd"), children()
    for n in range(2):
        with Sandbox(FUNCTIONS) as sandbox:
            sandbox.start("look()" if n % 2 else "import os\nos._exit(3)")
            sandbox.next()
    Sandbox(FUNCTIONS)  # nobody keeps it
    assert os.listdir("/proc/self/fd") == descriptors
    assert children() == before


def test_the_child_ends_with_its_parent() -> None:
    code = """
        import os, time
        from apt_bench.policies.code_as_policies.sandbox import Sandbox
        sandbox = Sandbox(["look"])
        sandbox.start("look()")
        sandbox.next()
        print(sandbox._child._process.pid, flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    wait_for_state(int(done.stdout), "", "Z")


def replace_child(monkeypatch: pytest.MonkeyPatch, folder: object, text: str) -> None:
    """Let sandboxes start another child, in a folder that has the module `wall` too."""
    for name, content in (("child.py", text), ("wall.py", module.CHILD.with_name("wall.py").read_text())):
        (folder / name).write_text(content)  # type: ignore[operator]
    monkeypatch.setattr(module, "CHILD", folder / "child.py")  # type: ignore[operator]


def child_of(sandbox: Sandbox) -> int:
    assert sandbox._child is not None
    return sandbox._child._process.pid


def wait_for_state(pid: int, *states: str) -> None:
    deadline = time.monotonic() + 5
    while state(pid) not in states:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(pid: int) -> str:
    """The state letter of a process, or "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def children() -> set[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found |= set(file.read().split())
    return found
