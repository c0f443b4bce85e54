import { defineConfig } from 'vitest/config'

// unit: no emulator, seconds. hw: boots QEMU through the hw-tests harness; never retried.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: [
            'test/**/*.test.ts',
            '{base,keys,bundle,publisher,device,bootloader,initramfs}/**/*.test.ts',
            'hw-tests/harness/**/*.test.ts',
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
          // An emulated device boots on one processor. A real place is one board: one file at a time.
          maxWorkers: process.env['HIL_PLACE'] ? 1 : 2,
          retry: 0,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
