"""The log in memory, bare and behind a network without faults."""

from log_contract import LogContract
from luciola.kv.log import MemoryLog
from luciola.kv.log.faulty import FaultyLog, Outcome
from virtual_loop import simulate


class TestMemoryLog(LogContract):
    def run(self, scenario):
        async def on_log():
            log = MemoryLog()
            await scenario(log)
            await log.close()

        simulate(on_log())


class TestFaultyLogWithoutFaults(LogContract):
    def run(self, scenario):
        async def on_log():
            log = FaultyLog(MemoryLog(), lambda _method: Outcome(before_s=0.01, after_s=0.01))
            await scenario(log)
            await log.close()

        simulate(on_log())
