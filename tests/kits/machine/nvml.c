/* NVIDIA's management library for one GPU, with the functions that lipsyncd calls: built as libnvidia-ml.so.1. */

#include <string.h>

#define OK 0
#define NOT_FOUND 6

int nvmlInit_v2(void) { return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
	*device = (void *)(unsigned long)(index + 1);
	return index == 0 ? OK : NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used)
{
	total_free_used[0] = 16000000000ULL, total_free_used[1] = 15000000000ULL, total_free_used[2] = 1000000000ULL;
	return OK;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length)
{
	strcpy(name, "Test GPU");
	return OK;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length)
{
	strcpy(uuid, UUID);
	return OK;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
	strcpy(version, "1.2.3");
	return OK;
}
