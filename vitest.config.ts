import { defineConfig } from 'vitest/config'
import { testsAtOnce } from './hw-tests/places/at-once.ts'
import { LongestFirst } from './scripts/longest-first.ts'

// unit: no emulator, seconds. hw: boots QEMU through the hw-tests harness; never retried.
export default defineConfig({
  test: {
    // The second one writes out/hil/RUN, and only for the project hw.
    reporters: ['default', './hw-tests/report/reporter.ts'],
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'unit',
          include: [
            'test/**/*.test.ts',
            '{base,keys,bundle,publisher,device,bootloader,initramfs}/**/*.test.ts',
            'hw-tests/**/*.test.ts',
          ],
          // None takes more than 25 s; this is for a slow machine that has much else to do.
          testTimeout: 180_000,
          hookTimeout: 180_000,
          expect: { poll: { timeout: 60_000 } },
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
          maxWorkers: testsAtOnce(process.env),
          retry: 0,
          testTimeout: 1_200_000,
          hookTimeout: 1_200_000,
        },
      },
    ],
  },
})
