export function withoutBaseTable(source: string): string
