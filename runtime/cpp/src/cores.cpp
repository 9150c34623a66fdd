#include "cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace llama {

int available_cores() {
#ifdef __linux__
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;  // hardware threads of one core share its arithmetic units
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
            std::string siblings;
            cores.insert(std::getline(file, siblings) ? siblings : std::to_string(cpu));
        }
        int count = static_cast<int>(cores.size());
        // "max 100000" or "200000 100000": microseconds of processor time in each period.
        std::ifstream quota("/sys/fs/cgroup/cpu.max");
        double granted = 0, period = 0;
        if (quota >> granted >> period && period > 0) count = std::min(count, static_cast<int>(std::ceil(granted / period)));
        return std::max(1, count);
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace llama
