// The test whether AMX tiles work on this machine.
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "dispatch.h"
#include "amx.h"

namespace sdk {

#if defined(__AVX512BF16__)

enum : int { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, PROBE_SECONDS = 5 };

bool request_amx() { return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0; }

// Returns 0 if the product of two tiles is correct.
SDK_AMX static int multiply_tiles() {
    alignas(64) uint32_t ones[TILE][TILE];
    alignas(64) float sums[TILE][TILE] = {};
    static const TileLayout layout;
    for (auto & row : ones) for (uint32_t & pair : row) pair = 0x3f803f80;
    written(&layout);
    written(ones);
    _tile_loadconfig(&layout);
    _tile_zero(0);
    _tile_loadd(1, ones, sizeof ones[0]);
    _tile_loadd(2, ones, sizeof ones[0]);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, sums, sizeof sums[0]);
    _tile_release();
    for (const auto & row : sums) for (float x : row) if (x != 2*TILE) return 1;
    return 0;
}

// A virtual machine may report AMX although the first AMX instruction raises a signal or never
// returns. The test therefore runs in a child process, so that it cannot end this one. A signal
// handler in this process would apply to all of its threads, and it could not handle a hang.
bool has_amx() {
    const pid_t child = fork();
    if (child == 0) {
        for (int signal : { SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGALRM }) ::signal(signal, SIG_DFL);
        const rlimit none = { 0, 0 };
        setrlimit(RLIMIT_CORE, &none);
        alarm(PROBE_SECONDS);
        _exit(request_amx() ? multiply_tiles() : 1);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0) if (errno != EINTR) return false;
    return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 && request_amx();
}

#else

bool request_amx() { return false; }
bool has_amx() { return false; }

#endif

}  // namespace sdk

// Returns a value other than zero if tiles work on this machine and the system allows them for this
// process. The system may allow them for the child and deny them here: it denies them if any thread
// has too small a stack for signals.
extern "C" SDK_EXPORT int sdk_has_amx(void) { return sdk::has_amx(); }
