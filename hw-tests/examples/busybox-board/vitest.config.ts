import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    reporters: ['default', 'bistable/hil/reporter'],
    projects: [
      {
        test: {
          // The reporter looks at the project of this name.
          name: 'hw',
          include: ['*.hil.ts'],
          globalSetup: ['bistable/hil/setup'],
          maxWorkers: 1,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
