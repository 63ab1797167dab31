/* A stand-in for NVIDIA's management library: what it says stands in a text file.
 *
 * The file named by FAKE_NVML_FIGURES is read again on every call, so that a test changes memory
 * and processes, or loses a GPU, while a sweep runs. One line each (build.py writes them):
 *
 *     init <error>
 *     gpu <uuid> <total MiB> <free MiB> <pids> <error> <memory error> <compute mode> <MIG>
 *         <utilisation> <temperature> <clock> <lanes> <name>     (on the same line)
 *     mig <the same fields>      an instance of the GPU above
 *     gap                        a place among its instances that is empty
 *
 * `pids` is 1,2:500,3 or -, with the MiB of a process where NVML tells them. An `error` is a code of
 * NVML that every call about the device returns, 0 for none. MIG is 1, 0, or -1 for a board that
 * knows no MIG. Utilisation (per cent) and temperature (Celsius) are -1 where not supported,
 * as is the clock (MHz, now and at most). Lanes are those of PCIe now, of 16.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GPUS 16
#define PLACES 8 /* MIG places of a GPU */
#define PIDS 16
enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, MISMATCH = 25 };

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;
typedef struct { unsigned gpu, memory; } utilization;

typedef struct {
    int exists, error, memory_error, compute_mode, mig_mode, utilisation, temperature, clock, lanes, pid_count;
    unsigned pids[PIDS];
    unsigned long long pid_bytes[PIDS]; /* all ones: not available, as in a container */
    unsigned long long total_mib, free_mib;
    char uuid[96], name[96];
} figures;

/* A handle is the address of one of these: GPU n, and its places 1 to PLACES. */
static char handles[GPUS][PLACES + 1];
static int initialized;

/* Reads device (gpu, place) into `out`; the return value is the error of `init`. */
static int look(int gpu, int place, figures *out, unsigned *count) {
    char line[512], kind[8], pids[256];
    int init = OK, at_gpu = -1, at_place = 0;
    const char *path = getenv("FAKE_NVML_FIGURES");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return NO_DRIVER;
    if (out) memset(out, 0, sizeof *out);
    while (fgets(line, sizeof line, file)) {
        figures f = {.exists = 1};
        if (sscanf(line, "init %d", &init) == 1) continue;
        if (!strncmp(line, "gap", 3)) { at_place++; continue; }
        if (sscanf(line, "%7s %95s %llu %llu %255s %d %d %d %d %d %d %d %d %95[^\n]", kind, f.uuid, &f.total_mib,
                   &f.free_mib, pids, &f.error, &f.memory_error, &f.compute_mode, &f.mig_mode, &f.utilisation,
                   &f.temperature, &f.clock, &f.lanes, f.name) != 14) continue;
        if (strcmp(kind, "mig")) { at_gpu++; at_place = 0; } else at_place++;
        if (!out || at_gpu != gpu || at_place != place) continue;
        for (char *p = strtok(pids, ",-"); p && f.pid_count < PIDS; p = strtok(NULL, ",-")) {
            char *rest;
            f.pids[f.pid_count] = (unsigned)strtoul(p, &rest, 10);
            f.pid_bytes[f.pid_count++] = *rest == ':' ? strtoull(rest + 1, NULL, 10) << 20 : ~0ull;
        }
        *out = f;
    }
    fclose(file);
    if (count) *count = (unsigned)(at_gpu + 1);
    return init;
}

static int find(void *handle, figures *out) {
    long offset = (char *)handle - &handles[0][0];
    if (!initialized) return UNINITIALIZED;
    if (offset < 0 || offset >= (long)sizeof handles) return INVALID;
    int error = look((int)(offset / (PLACES + 1)), (int)(offset % (PLACES + 1)), out, NULL);
    if (error) return error;
    return out->exists ? out->error : NOT_FOUND;
}

static int say(const char *text, char *buffer, unsigned length) {
    if (strlen(text) >= length) return TOO_SMALL;
    strcpy(buffer, text);
    return OK;
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    int error = look(-1, 0, NULL, NULL);
    (void)flags;
    initialized |= !error;
    return error;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) { return initialized ? OK : UNINITIALIZED; }
EXPORT const char *nvmlErrorString(int error) { (void)error; return "an error of the fake library"; }
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned length) { return say("550.54.15", text, length); }
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { return initialized ? look(-1, 0, NULL, count) : UNINITIALIZED; }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    figures f;
    if (index >= GPUS) return INVALID;
    *handle = &handles[index][0];
    int error = find(*handle, &f);
    return error == NOT_FOUND ? INVALID : error;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    for (int gpu = 0; gpu < GPUS; gpu++)
        for (int place = 0; place <= PLACES; place++) {
            figures f;
            int error = find(&handles[gpu][place], &f);
            if (strcmp(f.uuid, uuid)) continue;
            *handle = &handles[gpu][place];
            return error;
        }
    return NOT_FOUND;
}

#define ABOUT(handle) figures f; int error = find(handle, &f); if (error) return error
static int gpu_of(void *handle) { return (int)(((char *)handle - &handles[0][0]) / (PLACES + 1)); }
static int place_of(void *handle) { return (int)(((char *)handle - &handles[0][0]) % (PLACES + 1)); }

EXPORT int nvmlDeviceGetIndex(void *d, unsigned *index) { ABOUT(d); *index = (unsigned)gpu_of(d); return OK; }
EXPORT int nvmlDeviceGetUUID(void *d, char *text, unsigned length) { ABOUT(d); return say(f.uuid, text, length); }
EXPORT int nvmlDeviceGetName(void *d, char *text, unsigned length) { ABOUT(d); return say(f.name, text, length); }
EXPORT int nvmlDeviceGetPciInfo_v3(void *d, pci *info) {
    ABOUT(d);
    memset(info, 0, sizeof *info);
    info->bus = 16u * (unsigned)(gpu_of(d) + 1);
    snprintf(info->legacy, sizeof info->legacy, "0000:%02X:00.0", info->bus & 255);
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus & 255);
    return OK;
}
EXPORT int nvmlDeviceGetMemoryInfo(void *d, memory_v1 *m) {
    ABOUT(d);
    if (f.memory_error) return f.memory_error;
    m->total = f.total_mib << 20, m->free = f.free_mib << 20, m->used = m->total - m->free;
    return OK;
}
#ifndef WITHOUT_MEMORY_V2 /* as drivers before 510 */
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *d, memory_v2 *m) {
    ABOUT(d);
    if (m->version != (2u << 24 | sizeof *m)) return MISMATCH;
    if (f.memory_error) return f.memory_error;
    m->total = f.total_mib << 20, m->free = f.free_mib << 20, m->reserved = 300ull << 20;
    m->used = m->total > m->free + m->reserved ? m->total - m->free - m->reserved : 0;
    return OK;
}
#endif
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *count, process *list) {
    ABOUT(d);
    unsigned room = *count;
    *count = (unsigned)f.pid_count;
    if (room < *count) return TOO_SMALL;
    for (int i = 0; i < f.pid_count; i++) {
        memset(&list[i], 0, sizeof list[i]);
        list[i].pid = f.pids[i];
        list[i].used = f.pid_bytes[i];
        list[i].gpu_instance = list[i].compute_instance = ~0u;
    }
    return OK;
}
#ifndef WITHOUT_PROCESSES_V3
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, process *list) {
    return nvmlDeviceGetComputeRunningProcesses_v2(d, count, list);
}
#endif
EXPORT int nvmlDeviceGetComputeMode(void *d, unsigned *mode) { ABOUT(d); *mode = (unsigned)f.compute_mode; return OK; }
EXPORT int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { ABOUT(d); *major = 9, *minor = 0; return OK; }
EXPORT int nvmlDeviceGetUtilizationRates(void *d, utilization *u) {
    ABOUT(d);
    if (f.mig_mode > 0 || place_of(d) || f.utilisation < 0) return NOT_SUPPORTED;
    u->gpu = (unsigned)f.utilisation, u->memory = 0;
    return OK;
}
EXPORT int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *celsius) {
    ABOUT(d);
    if (sensor || place_of(d) || f.temperature < 0) return NOT_SUPPORTED;
    *celsius = (unsigned)f.temperature;
    return OK;
}
EXPORT int nvmlDeviceGetClockInfo(void *d, int type, unsigned *mhz) {
    ABOUT(d);
    (void)type;
    if (place_of(d) || f.clock < 0) return NOT_SUPPORTED;
    *mhz = (unsigned)f.clock;
    return OK;
}
EXPORT int nvmlDeviceGetMaxClockInfo(void *d, int type, unsigned *mhz) { return nvmlDeviceGetClockInfo(d, type, mhz); }
EXPORT int nvmlDeviceGetCurrPcieLinkGeneration(void *d, unsigned *value) { ABOUT(d); *value = 5; return OK; }
EXPORT int nvmlDeviceGetMaxPcieLinkGeneration(void *d, unsigned *value) { ABOUT(d); *value = 5; return OK; }
EXPORT int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *value) { ABOUT(d); *value = (unsigned)f.lanes; return OK; }
EXPORT int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *value) { ABOUT(d); *value = 16; return OK; }
EXPORT int nvmlDeviceGetPowerUsage(void *d, unsigned *milliwatts) { ABOUT(d); *milliwatts = 70500; return OK; }
EXPORT int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *milliwatts) { ABOUT(d); *milliwatts = 700000; return OK; }
EXPORT int nvmlDeviceGetMigMode(void *d, unsigned *current, unsigned *pending) {
    ABOUT(d);
    if (f.mig_mode < 0 || place_of(d)) return NOT_SUPPORTED;
    *current = *pending = (unsigned)f.mig_mode;
    return OK;
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *count) { ABOUT(d); *count = f.mig_mode > 0 ? PLACES - 1 : 0; return OK; }
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned index, void **handle) {
    ABOUT(d);
    if (index >= PLACES) return INVALID;
    *handle = &handles[gpu_of(d)][index + 1];
    return find(*handle, &f);
}
EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *d, void **handle) { ABOUT(d); *handle = &handles[gpu_of(d)][0]; return OK; }
EXPORT int nvmlDeviceGetGpuInstanceId(void *d, unsigned *id) { ABOUT(d); *id = (unsigned)place_of(d); return place_of(d) ? OK : INVALID; }
EXPORT int nvmlDeviceGetComputeInstanceId(void *d, unsigned *id) { ABOUT(d); *id = 0; return place_of(d) ? OK : INVALID; }
