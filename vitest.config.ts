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
          include: ['hw-tests/{suites,examples}/*.hil.ts', 'test/**/*.hil.ts'],
          // `npm test` leaves the long ones out, `npm run hil` runs them.
          exclude: process.env['HIL_LONG'] === undefined ? ['**/*.long.hil.ts'] : [],
          globalSetup: ['hw-tests/setup.ts'],
          // Emulators can run side by side; a board is one.
          maxWorkers: /^(qemu-.*)?$/.test(process.env['HIL_PLACE'] ?? '') ? 2 : 1,
          retry: 0,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
