"""Hostile blocks of code. FILE, ARRAY, FOLDER, PORT, PROCESS and ADDRESS are replaced by targets of the test."""

FIND_OS = "next(c for c in object.__subclasses__() if c.__name__ == '_wrap_close').__init__.__globals__"

READ = {
    "open": "print(open(FILE).read())",
    "open by its descriptor": "import os\nprint(os.read(os.open(FILE, os.O_RDONLY), 100))",
    "openat of libc": "import ctypes\nlibc = ctypes.CDLL(None)\nbuffer = ctypes.create_string_buffer(100)\n"
    "libc.read(libc.open(FILE.encode(), 0), buffer, 100)\nprint(buffer.value)",
    "io.FileIO": "import io\nprint(io.FileIO(FILE).read())",
    "np.fromfile": "print(np.fromfile(FILE, dtype=np.uint8).tobytes())",
    "np.load": "print(np.load(ARRAY))",
    "np.loadtxt": "print(np.loadtxt(FILE, dtype=str))",
    "np.memmap": "print(bytes(np.memmap(FILE, mode='r')))",
    "np.genfromtxt": "print(np.genfromtxt(FILE, dtype=str))",
    "os from subclasses": f"g = {FIND_OS}\nprint(g['read'](g['open'](FILE, 0), 100))",
    "os from frames": "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\n"
    "print(f.f_globals['__builtins__'].open(FILE).read())",
    "the environment": "import os\nprint(os.environ)",
    "the environment by str.format": f"import sys\ng = {FIND_OS}\n"
    "print('{0.__init__.__globals__[environ]}'.format(g['_wrap_close']))",
    "the environment by /proc": "print(open('/proc/PROCESS/environ').read())",
    "the environment by libc": "import ctypes\ngetenv = ctypes.CDLL(None).getenv\ngetenv.restype = ctypes.c_char_p\n"
    "print(getenv(b'APT_BENCH_API_KEY'))",
    "np.DataSource": "print(np.lib.npyio.DataSource().open(FILE).read())",
    "operator.attrgetter": f"import operator\ng = {FIND_OS}\n"
    "print(operator.attrgetter('__init__.__globals__')(g['_wrap_close'])['popen']('cat ' + FILE).read())",
    "gc": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and callable(o.get('popen')):\n"
    "        print(o['popen']('cat ' + FILE).read())\n        break",
    "code with other builtins": "import builtins\nn = {'__builtins__': vars(builtins), 'name': FILE}\n"
    "exec('print(open(name).read())', n)",
    "linecache": "import linecache\nprint(linecache.getlines(FILE))",
    "warnings": "import warnings\nwarnings.warn_explicit('x', UserWarning, FILE, 1)",
    "tokenize": "import tokenize\nprint(tokenize.open(FILE).read())",
    "a traceback with the file's name": "import traceback\ntry: exec(compile('1/0', FILE, 'exec'))\n"
    "except ZeroDivisionError: print(traceback.format_exc())",
    "importing the file": "import sys\nsys.path.insert(0, FILE.rsplit('/', 1)[0])\nsys.path_importer_cache.clear()\n"
    "import importlib.machinery as m\nsys.meta_path.append(m.PathFinder)\n"
    "print(m.SourceFileLoader('x', FILE).get_data(FILE))",
    "a subprocess": "import subprocess\nprint(subprocess.run(['cat', FILE], capture_output=True).stdout)",
    "another's command line": "print(open('/proc/PROCESS/cmdline').read())",
    "another's memory": "import ctypes\nlibc = ctypes.CDLL(None)\nclass V(ctypes.Structure):\n"
    "    _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
    "buffer = ctypes.create_string_buffer(64)\nlocal, remote = V(ctypes.addressof(buffer), 64), V(ADDRESS, 64)\n"
    "import os\n"
    "libc.process_vm_readv(os.getppid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)\nprint(buffer.value)",
}
"""Ways to print the contents of a file, of a command line, or of the parent's memory. Each holds a secret."""

CHANGE = {
    "open": "open(FOLDER + '/a', 'w').write('x')",
    "np.save": "np.save(FOLDER + '/b', np.zeros(3))",
    "ndarray.tofile": "np.zeros(3).tofile(FOLDER + '/c')",
    "np.savetxt": "np.savetxt(FOLDER + '/d', np.zeros(3))",
    "np.memmap": "np.memmap(FOLDER + '/e', mode='w+', shape=3)",
    "np.memmap of a file": "np.memmap(FILE, mode='r+')[:] = 0",
    "a pickle that np.load reads": "import io, os, pickle\nclass E:\n"
    "    def __reduce__(self): return os.system, ('touch ' + FOLDER + '/m',)\n"
    "np.load(io.BytesIO(pickle.dumps(E())), allow_pickle=True)",
    "mkdir": "import os\nos.mkdir(FOLDER + '/f')",
    "a link": "import os\nos.symlink(FILE, FOLDER + '/g')",
    "removal": "import os\nos.unlink(FILE)",
    "truncation": "import os\nos.truncate(FILE, 0)",
    "permissions": "import os\nos.chmod(FILE, 0)",
    "a connection": "import socket\ns = socket.socket()\ns.connect(('127.0.0.1', PORT))",
    "a connection by libc": "import ctypes\nlibc = ctypes.CDLL(None)\ns = libc.socket(2, 1, 0)\n"
    "address = bytes([2, 0]) + (PORT).to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8)\n"
    "libc.connect(s, address, 16)",
    "a program": "import os\nos.system('touch ' + FOLDER + '/h')",
    "a program through posix_spawn": "import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'touch ' + FOLDER + '/i'], {})",
    "a program in place of this one": "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch ' + FOLDER + '/j'])",
    "a fork": "import os\nos.fork()",
    "a fork bomb": f"g = {FIND_OS}\nfor _ in range(50):\n    try: g['fork']()\n    except OSError: pass",
    "threads": "import threading\nfor _ in range(50):\n"
    "    try: threading.Thread(target=lambda: print('x'), daemon=True).start()\n"
    "    except RuntimeError: pass",
    "a thread by _thread": "import _thread\n_thread.start_new_thread(print, ('x',))",
    "a signal to the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGUSR1)",
    "a signal by libc": "import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 10)",
    "ptrace": "import ctypes, os\nprint(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))",
    "another session": "import os\nos.setsid()",
    "a higher limit": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nopen(FOLDER + '/k', 'w')",
    "another user": "import os\nos.setuid(0)\nos.mkdir(FOLDER + '/l')",
    "many descriptors": "import os\nfor _ in range(2000):\n    try: os.dup(3)\n    except OSError: pass",
    "shared memory": "from multiprocessing import shared_memory as s\ns.SharedMemory('apt', create=True, size=10)",
}
"""Attempts to change something outside of the process, or to get another process."""

STOPPED = {
    "an endless loop that catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "computed for more than",
    ),
    "a large power": ("9 ** 9 ** 9", "computed for more than"),
    "a slow regular expression": ("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", "computed for more than"),
    "sleep": ("import time\ntime.sleep(1000)", "computed for more than"),
    "ignored signals": (
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        "computed for more than",
    ),
    "a repr that never ends": (
        "class A:\n    def __repr__(self):\n        while True: pass\nprint(A())",
        "computed for more than",
    ),
    "an exception whose text never ends": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        "computed for more than",
    ),
    "a list that fills the memory": ("l = []\nwhile True: l.append([0] * 10 ** 5)", "MB of memory"),
    "arrays that fill the memory": ("l = []\nwhile True: l.append(np.ones(10 ** 5))", "MB of memory"),
    "texts that fill the memory": ("s = 'x' * 10 ** 6\nl = []\nwhile True: l.append(s * 2)", "MB of memory"),
    "os._exit": ("import os\nos._exit(7)", "exited with code 7"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "Segmentation fault"),
    "endless calls": ("while True: look()", "called functions more than"),
}
"""Blocks whose process must be stopped, with a part of the reason."""

GOES_ON = {
    "exit": "exit()",
    "quit with a code": "raise SystemExit(3)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "class B(BaseException): pass\nraise B",
    "an exception without a text": "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
    "an exception without a class's name": "class M(type):\n    __name__ = property(lambda s: 1 / 0)\n"
    "class E(Exception, metaclass=M): pass\nraise E",
    "a repr that raises": "class A:\n    def __repr__(self): raise MemoryError\nprint(A())",
    "deep recursion": "def f(): f()\nf()",
    "recursion without a limit": "import sys\nsys.setrecursionlimit(10 ** 9)\n"
    "f = lambda: [*map(lambda _: f(), [1])]\nf()",
    "a huge array": "np.zeros(10 ** 12)",
    "a huge list": "[0] * 10 ** 11",
    "a huge text": "'x' * 10 ** 12",
    "a deeply nested source": "eval('(' * 10000)",
    "many lines": "for _ in range(200000): print('x' * 50)",
    "a very long line": "print('x' * 10 ** 8)",
    "closed pipes": "import os\nfor n in range(10):\n    try: os.close(n)\n    except OSError: pass",
    "closed pipes by libc": "import ctypes\nfor n in range(10): ctypes.CDLL(None).close(n)",
    "stdout of one's own": "import sys\nsys.stdout = sys.stderr = None\nprint('x')",
    "closed stdout": "import sys\nsys.stdout.close()\nprint('x')",
    "other builtins": "import builtins\nfor n in dir(builtins):\n"
    "    if n[0] != '_' and n != 'setattr' and n != 'builtins': setattr(builtins, n, None)",
    "other functions": "look = move = np = None",
    "no namespace": "globals().clear()",
    "no modules": "import sys\nsys.modules.clear()",
    "input": "input()",
    "breakpoint": "breakpoint()",
    "an object that resists its end": "class A:\n    def __del__(self): 1 / 0\na = A()\ndel a",
    "a trace function": "import sys\nsys.settrace(lambda *a: 1 / 0)\nlook()",
    "os that is replaced": "import os\nos.read = os.write = os._exit = None\nlook()",
    "a signal handler": "import signal\nsignal.signal(signal.SIGTERM, lambda *a: 1 / 0)",
}
"""Blocks after which the same or another process runs the next block as if nothing had happened."""
