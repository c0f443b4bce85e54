import { defineConfig } from 'vitest/config'

// unit: no emulator, seconds. hw: boots QEMU through the hw-tests harness; never retried.
export default defineConfig({
  test: {
    // The second one writes out/hil/RUN, and only for the project hw.
    reporters: ['default', './hw-tests/report/reporter.ts'],
    projects: [
      {
        test: {
          name: 'unit',
          include: [
            'test/**/*.test.ts',
            '{base,keys,bundle,publisher,device,bootloader,initramfs}/**/*.test.ts',
            'hw-tests/**/*.test.ts',
          ],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          maxWorkers: 2,
        },
      },
      {
        test: {
          name: 'hw',
          include: ['hw-tests/**/*.hil.ts', 'test/**/*.hil.ts'],
          globalSetup: ['hw-tests/setup.ts'],
          // One file at a time: a place is one board, and two emulators on two processors wait for each other.
          maxWorkers: 2,
          retry: 0,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
